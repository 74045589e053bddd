"""mmengine's runner with a readable console."""

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..messages import quiet_console


class QuietRunner(Runner):
    """A Runner whose console shows progress, scores and warnings; its log file holds everything."""

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """The runner's logger, with :func:`mmseg_ignite.messages.quiet_console`."""
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger
