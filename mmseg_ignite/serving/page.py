"""The page: its fields, and what happens when they change."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from ..errors import IgniteError
from ..files import printable
from ..images.reading import SUFFIXES
from ..labels import CLASSES
from ..provenance import file_sha256
from ..version import __version__
from ..visualization.colours import PALETTES
from .drawing import areas_table, draw_overlay, draw_region, message, swatch_styles
from .predictions import Overview, Predictions, Result, region_of
from .turns import Turns, Visitors, check_presence

STYLE = (Path(__file__).parent / 'static' / 'app.css').read_text(encoding='utf-8')
OPACITY = 0.5
SIDES_MM = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sides of a region."""
_KEPT = 3600
"""Seconds for which an idle page keeps its result, and for which uploads stay."""
_TITLE = 'Tissue segmentation of H&E'
_EMPTY = 'Drop an image, or choose a slide. The picture with its classes appears here.'
_NO_PREDICTION = '<p class="empty">The areas of the classes appear here after the prediction.</p>'


def build_page(gradio: ModuleType, predictions: Predictions, turns: Turns, visitors: Visitors) -> object:
    """Return the page as Gradio's Blocks.

    Args:
        gradio: the package, which is imported only for the page.
        predictions: what the page calls.
        turns: who may predict.
        visitors: who listens for results.
    """
    options = predictions.options
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(300, _KEPT), fill_width=True) as page:
        gradio.HTML(f'<header><h1>{html.escape(_TITLE)}</h1><p>Research use only, not for diagnosis.</p></header>')
        fields = SimpleNamespace(
            result=gradio.State(None, time_to_live=_KEPT, delete_callback=predictions.remove),
            overview=gradio.State(None, time_to_live=_KEPT),
        )
        with gradio.Row(elem_id='columns'):
            with gradio.Column(scale=3, min_width=300, elem_id='inputs'):
                _input_fields(gradio, fields, predictions)
                fields.status = gradio.HTML(message(''), elem_id='status')
            with gradio.Column(scale=7, min_width=320, elem_id='results'):
                _result_fields(gradio, fields)
        gradio.HTML(_footer(predictions))
        _connect(gradio, page, fields, _Actions(gradio, predictions, turns, visitors))
    # Waiting predictions are counted by Turns; this limit only bounds what a faulty client may send.
    page.queue(max_size=64, api_open=False, default_concurrency_limit=options.waiting + 2)
    return page


def _input_fields(gradio: ModuleType, fields: SimpleNamespace, predictions: Predictions) -> None:
    options, trained = predictions.options, predictions.predictor.um_per_px
    with gradio.Tabs():
        with gradio.Tab('Image', id='image'):
            fields.file = gradio.File(
                label=f'ROI image, up to {options.max_upload:g} MB',
                file_types=list(SUFFIXES),
                height=160,
                elem_id='file',
            )
            fields.um = gradio.Number(
                round(trained, 4),
                label='Resolution of the image, um/px',
                info='0.25 for a 40x objective, 0.5 for 20x',
                elem_id='um',
            )
            fields.predict = gradio.Button('Predict', variant='primary', elem_id='predict', interactive=False)
        with gradio.Tab('Slide', id='slide', visible=options.slides is not None, elem_id='slide-tab'):
            fields.slide = gradio.Dropdown([], label='Slide on the server', elem_id='slide')
            fields.slide_um = gradio.Number(
                None,
                label='Resolution of level 0, um/px',
                info='what the file states; another is used when you press Enter',
                elem_id='slide-um',
            )
            fields.thumbnail = gradio.Image(
                label='Click the centre of the region',
                interactive=False,
                format='jpeg',
                buttons=[],
                elem_id='thumbnail',
                alt_text='Overview of the slide with the chosen region',
            )
            with gradio.Row():
                fields.x = gradio.Number(None, label='Centre x, mm', min_width=80, elem_id='x')
                fields.y = gradio.Number(None, label='Centre y, mm', min_width=80, elem_id='y')
                fields.side = gradio.Dropdown(
                    [(f'{side:g} mm', side) for side in SIDES_MM], value=1.0, label='Side', min_width=80, elem_id='side'
                )
            fields.predict_region = gradio.Button(
                'Predict the region', variant='primary', elem_id='predict-region', interactive=False
            )


def _result_fields(gradio: ModuleType, fields: SimpleNamespace) -> None:
    with gradio.Column(visible=False, elem_id='controls') as fields.controls:
        with gradio.Row(elem_id='display'):
            fields.opacity = gradio.Slider(
                0, 100, 100 * OPACITY, step=5, label='Opacity of the classes, %', buttons=[], elem_id='opacity'
            )
            fields.palette = gradio.Radio(list(PALETTES), value='official', label='Colours', elem_id='palette')
        fields.styles = gradio.HTML('', elem_id='styles')
        fields.classes = gradio.CheckboxGroup([], label='Classes shown', elem_id='classes', show_select_all=True)
    fields.view = gradio.Image(
        label=_EMPTY,
        interactive=False,
        format='jpeg',
        buttons=['fullscreen'],
        elem_id='view',
        alt_text='Tissue with the predicted classes',
    )
    fields.areas = gradio.HTML(_NO_PREDICTION, elem_id='areas')
    with gradio.Row(visible=False, elem_id='downloads') as fields.downloads:
        fields.geojson = gradio.DownloadButton('GeoJSON for QuPath', interactive=False, elem_id='geojson')
        fields.label = gradio.DownloadButton('Label PNG (class ids 1 to 16)', interactive=False, elem_id='label')


def _footer(predictions: Predictions) -> str:
    """Return the HTML of what the results depend on."""
    predictor = predictions.predictor
    name = Path(predictor.config_file).stem if predictor.config_file else 'a config without a file'
    checkpoints = ''.join(
        f'<li>{html.escape(printable(Path(path).name))}, SHA-256 <code>{file_sha256(path)}</code></li>'
        for path in predictor.ensemble.members
    )
    return (
        '<footer><p><b>Research use only, not for diagnosis.</b> The classes are predictions of a network and may be wrong.'
        f'</p><p>Model: {html.escape(printable(name))}, trained at {predictor.um_per_px:.3g} um/px. Regions below 100 '
        f'um² join their largest neighbour. mmseg_ignite {__version__}.</p><ul>{checkpoints}</ul></footer>'
    )


def _present(result: Result) -> list[int]:
    """Return the train ids of the classes that a result has."""
    return [i for i, name in enumerate(CLASSES) if result.areas.pixels[name]]


def _connect(gradio: ModuleType, page: object, fields: SimpleNamespace, actions: '_Actions') -> None:
    """Say which action follows which field."""
    shown = [fields.view, fields.styles, fields.classes, fields.areas, fields.geojson, fields.label]
    shown += [fields.controls, fields.downloads, fields.result]
    display = [fields.opacity, fields.classes, fields.palette]
    place = [fields.overview, fields.x, fields.y, fields.side]
    light = dict(queue=True, concurrency_limit=8, show_progress='hidden', api_visibility='private')
    heavy = dict(api_visibility='private', trigger_mode='once', show_progress='full', show_progress_on=fields.view)

    def predict(
        path: str | None, um: float | None, old: Result | None, opacity: float, palette: str, request: gradio.Request,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008  Gradio looks for this default
    ) -> list:  # fmt: skip
        return actions.predict_image(path, um, old, opacity, palette, request.session_hash, progress)

    def predict_region(
        overview: Overview | None, x: float | None, y: float | None, side: float, old: Result | None,
        opacity: float, palette: str, request: gradio.Request, progress: gradio.Progress = gradio.Progress(),  # noqa: B008
    ) -> list:  # fmt: skip
        return actions.predict_region(overview, (y, x), side, old, opacity, palette, request.session_hash, progress)

    def click(overview: Overview | None, event: gradio.SelectData) -> list:
        return actions.click(overview, event.index)

    page.load(actions.list_slides, None, [fields.slide], **light)
    fields.file.change(
        actions.look,
        [fields.file, fields.result],
        [fields.um, fields.predict, fields.status, *shown],
        **dict(light, trigger_mode='always_last'),
    )
    fields.predict.click(
        predict,
        [fields.file, fields.um, fields.result, fields.opacity, fields.palette],
        [fields.status, *shown],
        **heavy,
    )
    chosen = [fields.overview, fields.slide_um, fields.x, fields.y, fields.predict_region, fields.status]
    drawn = dict(fn=actions.draw_place, inputs=place, outputs=[fields.thumbnail])
    fields.slide.input(actions.choose_slide, [fields.slide], chosen, **light).then(**drawn, **light)
    fields.slide_um.submit(
        actions.correct_slide, [fields.slide, fields.slide_um, fields.overview], chosen, **light
    ).then(**drawn, **light)
    fields.thumbnail.select(click, [fields.overview], [fields.x, fields.y], **light)
    for field in (fields.x, fields.y, fields.side):
        field.change(**drawn, **dict(light, trigger_mode='always_last'))
    fields.predict_region.click(
        predict_region,
        [fields.overview, fields.x, fields.y, fields.side, fields.result, fields.opacity, fields.palette],
        [fields.status, *shown],
        **heavy,
    )
    for field in (fields.opacity, fields.classes):
        field.change(
            actions.redraw, [fields.result, *display], [fields.view], **dict(light, trigger_mode='always_last')
        )
    fields.palette.change(
        actions.recolour, [fields.result, *display], [fields.view, fields.styles, fields.areas], **light
    )


class _Actions:
    """What follows a change of a field; each returns the new values of fields, in the order of ``_connect``."""

    def __init__(self, gradio: ModuleType, predictions: Predictions, turns: Turns, visitors: Visitors) -> None:
        self.gradio, self.predictions, self.turns, self.visitors = gradio, predictions, turns, visitors

    def look(self, path: str | None, old: Result | None) -> list:
        """Show an uploaded image, and ask for its resolution."""
        self.predictions.remove(old)
        if path is None:
            return [self.gradio.skip(), self._button(False), '', *self._cleared(None)]
        try:
            seen = self.predictions.look(path)
        except IgniteError as error:
            return [self.gradio.skip(), self._button(False), message(str(error), 'error'), *self._cleared(None)]
        um = round(seen.um_per_px or self.predictions.predictor.um_per_px, 4)
        text = f'{seen.name}: {seen.size[1]:,} x {seen.size[0]:,} px. {seen.note}'
        return [um, self._button(True), message(text), *self._cleared(seen.picture)]

    def predict_image(
        self, path: str | None, um: float | None, old: Result | None, opacity: float, palette: str, session: str,
        progress: Callable,
    ) -> list:  # fmt: skip
        """Predict the uploaded image."""
        return self._predicted(
            lambda go: self.predictions.image(path, um, go), old, opacity, palette, session, progress
        )

    def predict_region(
        self,
        overview: Overview | None,
        centre: tuple,
        side: float,
        old: Result | None,
        opacity: float,
        palette: str,
        session: str,
        progress: Callable,
    ) -> list:
        """Predict the region of the slide."""

        def predict(advance: Callable) -> Result:
            if overview is None:
                raise IgniteError('no slide is chosen: choose one from the list.')
            return self.predictions.region(overview.name, overview.given, centre, side, advance)

        return self._predicted(predict, old, opacity, palette, session, progress)

    def _predicted(
        self,
        predict: Callable[[Callable], Result],
        old: Result | None,
        opacity: float,
        palette: str,
        session: str,
        progress: Callable,
    ) -> list:
        progress(0, desc='waiting for another prediction')
        has_left = self.visitors.watch(session)

        def advance(done: int, windows: int) -> None:
            check_presence(has_left)
            progress((done, windows), desc='predicting', unit='windows')

        try:
            with self.turns.taken(has_left):
                progress(0, desc='reading')
                found = predict(advance)
        except IgniteError as error:
            return [message(str(error), 'error'), *[self.gradio.skip()] * 9]
        self.predictions.remove(old)
        present = _present(found)
        chosen = [i for i in present if i] or present  # glass stays as it is at first
        picture = draw_overlay(found.image, found.labels, found.um_per_px, opacity / 100, chosen, palette)
        return [
            message(f'{found.name}: {"; ".join(found.notes) or "predicted"}.', 'done'),
            self.gradio.Image(picture, label=found.name),
            swatch_styles(present, palette),
            self.gradio.CheckboxGroup([(CLASSES[i], i) for i in present], value=chosen),
            areas_table(found.areas, palette),
            self._button(True, found.geojson_file),
            self._button(True, found.label_file),
            *[self.gradio.update(visible=True)] * 2,
            found,
        ]

    def redraw(self, result: Result | None, opacity: float, shown: Sequence[int], palette: str) -> object:
        """Draw the labels again, without a prediction."""
        if result is None:
            return self.gradio.skip()
        return draw_overlay(result.image, result.labels, result.um_per_px, opacity / 100, shown, palette)

    def recolour(self, result: Result | None, opacity: float, shown: Sequence[int], palette: str) -> list:
        """Draw the labels and the legend again, in another palette."""
        if result is None:
            return [self.gradio.skip()] * 3
        return [
            self.redraw(result, opacity, shown, palette),
            swatch_styles(_present(result), palette),
            areas_table(result.areas, palette),
        ]

    def list_slides(self) -> object:
        """Fill the list of slides."""
        return self.gradio.Dropdown(self.predictions.slides(), value=None)

    def choose_slide(self, name: str | None, um: float | None = None) -> list:
        """Read the thumbnail of a slide; the region starts in its middle."""
        if not name:
            return [None, None, None, None, self._button(False), '']
        try:
            seen = self.predictions.slide(name, um)
        except IgniteError as error:
            return [None, um, None, None, self._button(False), message(str(error), 'error')]
        y, x = (round(side * seen.um_per_px / 2000, 3) for side in seen.size)
        return [seen, round(seen.um_per_px, 4), x, y, self._button(True), message(f'{seen.name}: {seen.note}')]

    def correct_slide(self, name: str | None, um: float | None, overview: Overview | None) -> list:
        """Use another resolution of a slide; an empty field is what the file states."""
        if overview is not None and um and abs(um - overview.um_per_px) < 1e-4:
            return [self.gradio.skip()] * 6
        return self.choose_slide(name, um or None)

    def click(self, overview: Overview | None, place: Sequence[float]) -> list:
        """Return the centre (x, y) mm of a click at (x, y) px of the thumbnail."""
        if overview is None:
            return [self.gradio.skip()] * 2
        return [
            round((at + 0.5) / shown * side * overview.um_per_px / 1000, 3)
            for at, shown, side in zip(place, overview.picture.shape[1::-1], overview.size[::-1])
        ]

    def draw_place(self, overview: Overview | None, x: float | None, y: float | None, side: float) -> np.ndarray | None:
        """Draw the region into the thumbnail."""
        if overview is None:
            return None
        try:
            spans = region_of(overview.size, overview.um_per_px, (y, x), side)
        except IgniteError:  # a field is empty while the user types
            return draw_region(overview.picture, None)
        return draw_region(
            overview.picture, [[place / whole for place in span] for span, whole in zip(spans, overview.size)]
        )

    def _cleared(self, picture: np.ndarray | None) -> list:
        """Return the fields of a result without one."""
        view = self.gradio.Image(picture, label=_EMPTY if picture is None else 'not predicted yet')
        classes = self.gradio.CheckboxGroup([], value=[])
        return [
            view,
            '',
            classes,
            _NO_PREDICTION,
            *[self._button(False, None)] * 2,
            *[self.gradio.update(visible=False)] * 2,
            None,
        ]

    def _button(self, on: bool, *file: Path | None) -> object:
        """Return the change of a button; a file makes it that of a download."""
        if not file:
            return self.gradio.Button(interactive=on)
        return self.gradio.DownloadButton(value=file[0] and str(file[0]), interactive=on)
