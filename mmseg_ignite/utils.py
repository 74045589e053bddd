"""The hook that ``mmengine.hub.get_model('mmseg_ignite::...')`` calls."""

from mmengine.registry import init_default_scope


def register_all_modules(init_default: bool = True) -> None:
    """Set the default scope if asked; importing the package has registered everything."""
    if init_default:
        init_default_scope('mmseg')
