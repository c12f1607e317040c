from .app import build_app as build_app
from .running import serve as serve
from .settings import ServeSettings as ServeSettings
from .settings import is_loopback as is_loopback
