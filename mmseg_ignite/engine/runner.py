"""mmengine's runner with a readable console, which never overwrites files of others."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..files import is_ours, result_file
from ..messages import quiet_console


class QuietRunner(Runner):
    """A Runner whose console shows progress, scores and warnings; its log file holds everything."""

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """Build the logger and apply :func:`mmseg_ignite.messages.quiet_console`."""
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger

    @master_only
    def dump_config(self) -> None:
        """Write the resolved config to the work dir; a config of the same name by somebody else is kept."""
        path = Path(self.work_dir) / (Path(self.cfg.filename).name if self.cfg.filename else f'{self.timestamp}.py')
        if path.exists() and not is_ours(path):
            path = path.with_name(f'{path.stem}_{self.timestamp}.py')
        with result_file(path) as partial:
            self.cfg.dump(str(partial))
