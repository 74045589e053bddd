"""What ``mmengine.hub.get_model('mmseg_ignite::...')`` asks of a package."""

from mmengine.registry import init_default_scope


def register_all_modules(init_default: bool = True) -> None:
    """Importing the package has registered everything; here is left to choose the default scope, if asked."""
    if init_default:
        init_default_scope('mmseg')
