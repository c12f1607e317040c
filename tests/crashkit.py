"""A process that kills itself at a named step of its work, for tests of crash safety."""

DEADLY = """
def deadly(function):
    calls = 0
    def step(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == plan["n"] and plan["when"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == plan["n"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step
"""
"""Part of a child's script, which imports ``os`` and ``signal`` and has a ``plan``.

``deadly`` kills the process just before ("before") or after the n-th call of the function given.
"""
