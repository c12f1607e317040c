"""Checkpoints of the published form: every tensor is accounted for, or the file is refused by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hematokit_dinobloom.weights import load_weights
from safetensors.torch import save_file

from conftest import make, teacher
from hematokit.errors import HematokitError

State = dict[str, torch.Tensor]


def test_the_published_form_is_taken_over_whole(checkpoint: Path) -> None:
    network, given = make(), teacher()
    head = network.head.weight.clone()
    accounting = load_weights(network, checkpoint)
    own = network.state_dict()
    body = {name for name in given if name.startswith("backbone.") and "mask_token" not in name}
    assert set(accounting.loaded) == {name.replace("backbone.", "body.") for name in body}
    assert set(accounting.left_out) == set(given) - body
    assert accounting.resized == ()
    assert all(torch.equal(own[name.replace("backbone.", "body.")], given[name]) for name in body)
    assert torch.equal(network.head.weight, head)


def test_positions_are_interpolated_to_another_size(checkpoint: Path) -> None:
    network = make(84)
    accounting = load_weights(network, checkpoint)
    given, own = teacher()["backbone.pos_embed"], network.body.pos_embed
    assert accounting.resized == ("body.pos_embed",)
    assert own.shape == (1, 1 + 6 * 6, 48)
    assert torch.equal(own[:, 0], given[:, 0])
    wanted = torch.nn.functional.interpolate(
        given[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic", antialias=True
    )
    assert torch.allclose(own[:, 1:].unflatten(1, (6, 6)).permute(0, 3, 1, 2), wanted, atol=1e-5)


def _chunked(state: State) -> State:
    return {name.replace("blocks.", "blocks.0.", 1): value for name, value in state.items()}


def _bare(state: State) -> State:
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("form", [_chunked, _bare])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_other_spellings_give_the_same_network(
    form: Callable[[State], State], ending: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(form(teacher()), path)
    else:
        save_file(form(teacher()), path)
    first, second = make(), make()
    load_weights(first, checkpoint)
    load_weights(second, path)
    assert all(torch.equal(value, second.body.state_dict()[name]) for name, value in first.body.state_dict().items())


def _without(state: State) -> None:
    del state["backbone.blocks.2.attn.qkv.weight"]


def _with_more(state: State) -> None:
    state["backbone.blocks.3.norm1.weight"] = torch.zeros(48)


def _registers(state: State) -> None:
    state["backbone.register_tokens"] = torch.zeros(1, 4, 48)


def _other_shape(state: State) -> None:
    state["backbone.patch_embed.proj.weight"] = torch.zeros(48, 3, 16, 16)


def _other_positions(state: State) -> None:
    state["backbone.pos_embed"] = torch.zeros(1, 12, 48)


def _another_variant(state: State) -> None:
    state["backbone.cls_token"] = torch.zeros(1, 1, 768)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without, "1 missing (body.blocks.2.attn.qkv.weight)"),
        (_with_more, "1 unexpected (body.blocks.3.norm1.weight)"),
        (_registers, "1 unexpected (body.register_tokens)"),
        (_other_shape, "1 of another shape (body.patch_embed.proj.weight"),
        (_other_positions, "1 of another shape (body.pos_embed"),
        (_another_variant, "choose dinobloom:b"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    spoil: Callable[[State], None], said: str, tmp_path: Path
) -> None:
    state, network = teacher(), make()
    spoil(state)
    torch.save({"teacher": state}, tmp_path / "spoilt.pth")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(HematokitError) as caught:
        load_weights(network, tmp_path / "spoilt.pth")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class _Harmful:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_run, ("x",))


def _run(_: str) -> None:
    _Harmful.ran = True


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"teacher": {**teacher(), "harm": _Harmful()}}, tmp_path / "zip.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(_Harmful()))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(HematokitError, match="cannot be read safely") as caught:
            load_weights(make(), path)
        assert "\n" not in str(caught.value)
    assert not _Harmful.ran
