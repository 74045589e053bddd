'use strict';
/* Predicted slides. OpenSeadragon draws the tiles of a slide; its labels are ids that are coloured here. */
(() => {
  const { slides, classes } = Report.data;
  if (!slides.length) return;
  const state = { slide: null, opacity: .5, shown: true, style: 'filled', hidden: new Set([0]) };
  const find = id => document.getElementById(id);
  const LAYERS = { slide: 0, gray: 1, labels: 2 }; // from bottom to top
  const KEPT = 96; // decoded label tiles, 256 KiB each, for the class at the pointer

  /* ---- label tiles: scripts that call mmsegTile(base64) ---- */
  const waiting = new Map(), decoded = new Map();
  window.mmsegTile = base64 => waiting.get(document.currentScript)?.(base64);
  function loadScript(url) {
    return new Promise((resolve, reject) => {
      const script = document.createElement('script');
      const end = () => { waiting.delete(script); script.remove(); reject(new Error(url)); }; // nothing after resolve()
      waiting.set(script, resolve);
      script.onload = script.onerror = end;
      script.src = url;
      document.head.append(script);
    });
  }
  async function inflate(base64) {
    const stream = new Blob([Uint8Array.from(atob(base64), c => c.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream('deflate'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  /* Return the ids of a tile; both layers share them. */
  function loadIds(url) {
    let tile = decoded.get(url);
    if (tile) decoded.delete(url);
    else {
      tile = { ids: null, loading: loadScript(url).then(inflate) };
      tile.loading.then(ids => { tile.ids = ids; }, () => decoded.delete(url));
    }
    decoded.set(url, tile); // the last is the newest
    if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    return tile.loading;
  }

  /* ---- colouring ---- */
  function rgba(hex, factor) {
    const [r, g, b] = [1, 3, 5].map(i => Math.round(parseInt(hex.slice(i, i + 2), 16) * factor));
    return (255 << 24 | b << 16 | g << 8 | r) >>> 0; // the bytes R, G, B, A of a little-endian integer
  }
  /* Return tables from id to colour; hidden classes and other ids are transparent. */
  function paints() {
    const safe = document.documentElement.dataset.palette === 'safe', tables = {};
    for (const [key, factor] of [['colour', 1], ['stripe', 1], ['border', .35]]) {
      tables[key] = new Uint32Array(256);
      classes.forEach((c, id) => {
        if (state.hidden.has(id)) return;
        tables[key][id] = rgba(safe ? c.safe : c.official, key === 'stripe' && safe && c.hatched ? .3 : factor);
      });
    }
    return tables;
  }
  function fillTile(ids, width, out, tables) {
    const { colour, stripe, border } = tables;
    for (let i = 0, x = 0, y = 0; i < out.length; i++) {
      const id = ids[i];
      if ((x && ids[i - 1] !== id) || (y && ids[i - width] !== id)) out[i] = border[id];
      else out[i] = (x + y & 15) < 5 ? stripe[id] : colour[id];
      if (++x === width) { x = 0; y++; }
    }
  }
  /* Paint the two outermost pixels of each region. */
  function outlineTile(ids, width, out, tables) {
    const height = out.length / width;
    for (let i = 0, x = 0, y = 0; i < out.length; i++) {
      const id = ids[i];
      let edge = false;
      for (let d = 1; d <= 2 && !edge; d++) {
        edge = (x >= d && ids[i - d] !== id) || (x + d < width && ids[i + d] !== id) || (y >= d && ids[i - d * width] !== id) || (y + d < height && ids[i + d * width] !== id);
      }
      out[i] = edge ? tables.colour[id] : 0;
      if (++x === width) { x = 0; y++; }
    }
  }
  /* The layer below the labels takes the hue from tissue: the pink of eosin would turn the yellow of stroma into the orange of inflammation. */
  function grayTile(ids, out, tables) {
    for (let i = 0; i < out.length; i++) out[i] = tables.colour[ids[i]] ? 0xff808080 : 0;
  }
  function paint({ context, ids, layer }, tables) {
    const { width, height } = context.canvas;
    const picture = context.createImageData(width, height), out = new Uint32Array(picture.data.buffer);
    if (layer === 'gray') grayTile(ids, out, tables);
    else (state.style === 'filled' ? fillTile : outlineTile)(ids, width, out, tables);
    context.putImageData(picture, 0, 0);
  }
  const painted = new Set(); // tiles that OpenSeadragon may still draw
  function live(tile) {
    const context = tile.reference.deref();
    return context?.canvas.width ? { ...tile, context } : null; // OpenSeadragon shrinks canvases that it drops
  }
  function recolour() {
    const tables = paints();
    for (const tile of painted) {
      const found = live(tile);
      if (found) paint(found, tables);
      else painted.delete(tile);
    }
    redraw();
  }
  function redraw() {
    viewer.forceRedraw();
    viewer.navigator.forceRedraw();
  }

  /* ---- tile sources ---- */
  function bits(base64) {
    return Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  }
  /* Describe a layer: what exists, and the address of each tile. */
  function pyramid(slide, kind) {
    const { size: [height, width], levels } = slide[kind], top = levels.length - 1;
    const exists = levels.map(bits), columns = levels.map((_, level) => Math.ceil(Math.ceil(width / 2 ** (top - level)) / slide.tile));
    return {
      width, height, top,
      has: (level, x, y) => { const i = y * columns[level] + x; return level >= 0 && level <= top && (exists[level][i >> 3] >> (7 - (i & 7)) & 1) === 1; },
      url: (level, x, y) => `${slide.folder}/${kind}/${level}/${x}_${y}.${kind === 'slide' ? 'jpg' : 'js'}`,
      side: (full, level, n) => Math.min(slide.tile, Math.ceil(full / 2 ** (top - level)) - n * slide.tile),
    };
  }
  function tileSource(slide, layer) {
    const tiles = slide.pyramids[layer === 'slide' ? 'slide' : 'labels'];
    const source = new OpenSeadragon.TileSource({ width: tiles.width, height: tiles.height, tileSize: slide.tile, tileOverlap: 0, minLevel: 0, maxLevel: tiles.top });
    source.tileExists = tiles.has;
    source.getTileUrl = (level, x, y) => tiles.url(level, x, y) + (layer === 'gray' ? '#gray' : '');
    source.hasTransparency = () => true; // all layers are rounded to the same screen pixels, without seams
    if (layer === 'slide') return source;
    source.downloadTileAbort = () => {};
    source.downloadTileStart = job => {
      const { level, x, y } = job.tile;
      loadIds(tiles.url(level, x, y)).then(ids => {
        const canvas = document.createElement('canvas');
        canvas.width = tiles.side(tiles.width, level, x); canvas.height = tiles.side(tiles.height, level, y);
        const context = canvas.getContext('2d');
        paint({ context, ids, layer }, paints());
        painted.add({ reference: new WeakRef(context), ids, layer });
        job.finish(context, null, 'context2d');
      }).catch(error => job.fail(String(error), null));
    };
    return source;
  }

  /* ---- the viewer ---- */
  const viewer = new OpenSeadragon.Viewer({
    element: find('stage'), drawer: 'canvas', showNavigationControl: false, showNavigator: true, navigatorPosition: 'BOTTOM_RIGHT', navigatorSizeRatio: .16,
    animationTime: .4, blendTime: 0, maxZoomPixelRatio: 4, visibilityRatio: .3, minZoomImageRatio: .7, maxImageCacheCount: 300, silenceMultiImageWarnings: true,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ALWAYS,
  });
  const item = layer => viewer.world.getItemAt(LAYERS[layer]);
  function opacityOf(layer) {
    const labels = state.shown ? state.opacity : 0;
    if (layer === 'slide') return 1;
    const filled = state.style === 'filled';
    if (layer === 'labels') return filled ? labels : Math.min(1, 2 * labels); // thin lines need more
    return filled ? Math.min(1, 4 * labels) : 0;
  }
  function setOpacities() {
    for (const layer of ['gray', 'labels']) {
      item(layer)?.setOpacity(opacityOf(layer));
      viewer.navigator.world.getItemAt(LAYERS[layer])?.setOpacity(opacityOf(layer));
    }
    redraw();
  }
  /* The slide may be coarser than its labels. OpenSeadragon draws outer tiles a screen pixel too large, hence the clip. */
  function ofSlide({ size, slide: { size: [height, width], scale } }) {
    return { width: width * scale / size[1], clip: new OpenSeadragon.Rect(0, 0, width, height) };
  }
  function open(index) {
    const slide = slides[index];
    state.slide = index;
    slide.pyramids ??= { slide: pyramid(slide, 'slide'), labels: pyramid(slide, 'labels') };
    painted.clear();
    viewer.open(Object.keys(LAYERS).map(layer => ({
      tileSource: tileSource(slide, layer), opacity: opacityOf(layer), compositeOperation: layer === 'gray' ? 'saturation' : 'source-over',
      ...(layer === 'slide' ? ofSlide(slide) : { width: 1 }),
    })));
    for (const button of document.querySelectorAll('[data-slide]')) {
      const chosen = Number(button.dataset.slide) === index;
      button.setAttribute('aria-pressed', String(chosen));
      if (chosen) button.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    }
    describe();
    try { history.replaceState(null, '', '#' + encodeURIComponent(slide.name)); } catch { /* not in the address */ }
  }

  /* ---- scale bar and class at the pointer ---- */
  function showNavigator() {
    const zoomed = viewer.viewport.getZoom(true) > 1.2 * viewer.viewport.getHomeZoom();
    viewer.navigator.element.style.visibility = zoomed ? 'visible' : 'hidden'; // it would hide a part of a small image
  }
  function scaleBar() {
    const bar = find('bar'), um = slides[state.slide].um_per_px, labels = item('labels');
    bar.hidden = !um || !labels;
    if (bar.hidden) return;
    const pixel = um / labels.viewportToImageZoom(viewer.viewport.getZoom(true)); // um per CSS px
    const most = Math.min(220, viewer.container.clientWidth / 3) * pixel, power = 10 ** Math.floor(Math.log10(most));
    const length = power * [5, 2, 1].find(n => n * power <= most);
    bar.style.width = length / pixel + 'px';
    bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
    bar.dataset.um = length;
  }
  function classAt(x, y) {
    const tiles = slides[state.slide].pyramids.labels, side = slides[state.slide].tile;
    if (x < 0 || y < 0 || x >= tiles.width || y >= tiles.height) return null;
    for (let level = tiles.top; level >= 0; level--) {
      const scale = 2 ** (tiles.top - level), [u, v] = [Math.floor(x / scale), Math.floor(y / scale)];
      const [i, j] = [Math.floor(u / side), Math.floor(v / side)];
      if (!tiles.has(level, i, j)) return 0;
      const ids = decoded.get(tiles.url(level, i, j))?.ids;
      if (ids) return ids[(v - j * side) * tiles.side(tiles.width, level, i) + u - i * side];
    }
    return null;
  }
  let pointer = null;
  function readout() {
    const labels = item('labels');
    const point = pointer && labels?.viewerElementToImageCoordinates(pointer), id = point ? classAt(point.x, point.y) : null;
    find('pointer').textContent = id === null ? '' : Report.className(id);
  }

  /* ---- the panel ---- */
  const digits = (value, n) => value === null ? '–' : Number(value.toPrecision(n)).toLocaleString('en-US', { maximumFractionDigits: 6 });
  function percent(share) {
    return share === null ? '–' : share > 0 && share < .001 ? '< 0.1' : (100 * share).toFixed(1);
  }
  function element(tag, text) {
    const made = document.createElement(tag);
    made.textContent = text;
    return made;
  }
  function describe() {
    const slide = slides[state.slide], [height, width] = slide.size, um = slide.um_per_px;
    find('name').textContent = slide.name;
    const mm = side => (side * um / 1000).toFixed(2), size = { width: Report.count(width), height: Report.count(height) };
    find('facts').textContent = um ? Report.text('slide_size_mm', { ...size, um: digits(um, 3), mm_width: mm(width), mm_height: mm(height) })
      : `${Report.text('slide_size', size)}, ${Report.text('no_scale')}`;
    const known = new Map(slide.areas.map(row => [row.id, row]));
    for (const row of find('areas').tBodies[0].rows) {
      const area = known.get(Number(row.dataset.class)), [, mm2, share] = row.cells;
      row.classList.toggle('gone', !area?.mm2 && !area?.share);
      mm2.textContent = area ? digits(area.mm2, 3) : '–';
      share.textContent = area ? percent(area.share) : '–';
      share.style.setProperty('--part', `${100 * (area?.share ?? 0)}%`);
    }
    find('ratios').hidden = !slide.ratios.length;
    find('ratios').querySelector('dl').replaceChildren(...slide.ratios.flatMap(ratio => {
      const term = element('dt', Report.data.texts[ratio.name] ? Report.text(ratio.name) : ratio.name);
      term.append(element('b', digits(ratio.value, 3)));
      return [term, element('dd', ratio.formula ?? '')];
    }));
    find('notes').hidden = !slide.notes.length;
    find('notes').querySelector('ul').replaceChildren(...slide.notes.map(note => element('li', note)));
    viewer.canvas.setAttribute('aria-label', Report.text('stage'));
    readout();
  }

  /* ---- controls ---- */
  function setHidden(hidden) {
    state.hidden = hidden;
    for (const button of document.querySelectorAll('[data-toggle]')) button.setAttribute('aria-pressed', String(!hidden.has(Number(button.dataset.toggle))));
    recolour();
  }
  function toggleClass(id, alone) {
    const hidden = new Set(alone ? classes.keys() : state.hidden);
    if (!hidden.delete(id)) hidden.add(id);
    setHidden(hidden);
  }
  function toggleLabels() {
    state.shown = !state.shown;
    find('shown').setAttribute('aria-pressed', String(state.shown));
    setOpacities();
  }
  function zoom(factor) {
    if (factor === 'fit') viewer.viewport.goHome();
    else { viewer.viewport.zoomBy(Number(factor)); viewer.viewport.applyConstraints(); }
  }
  document.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (!button) return;
    if (button.dataset.slide) open(Number(button.dataset.slide));
    else if (button.dataset.toggle) toggleClass(Number(button.dataset.toggle), event.shiftKey);
    else if (button.dataset.all) setHidden(new Set(button.dataset.all === 'true' ? [] : classes.keys()));
    else if (button.dataset.zoom) zoom(button.dataset.zoom);
    else if (button.id === 'shown') toggleLabels();
  });
  document.addEventListener('keydown', event => {
    if (event.key.toLowerCase() === 'l' && !event.ctrlKey && !event.metaKey && !event.altKey) toggleLabels();
  });
  find('opacity').addEventListener('input', event => {
    state.opacity = event.target.value / 100;
    event.target.parentElement.querySelector('output').textContent = `${event.target.value} %`;
    setOpacities();
  });
  Report.onSwitch('style', style => { state.style = style; recolour(); setOpacities(); });
  Report.onPalette(recolour);
  Report.onLanguage(describe);
  for (const event of ['open', 'update-viewport', 'resize']) viewer.addHandler(event, () => { scaleBar(); showNavigator(); });
  for (const event of ['open', 'animation', 'tile-loaded']) viewer.addHandler(event, readout);
  viewer.addHandler('canvas-key', event => { if ('rf'.includes(event.originalEvent.key.toLowerCase())) event.preventDefaultAction = true; }); // no rotation, no flip
  viewer.addHandler('tile-load-failed', () => {
    document.querySelector('.load-error').textContent = Report.text(typeof DecompressionStream === 'undefined' ? 'too_old' : 'tile_failed');
  });
  new OpenSeadragon.MouseTracker({
    element: viewer.container, moveHandler: event => { pointer = event.position; readout(); }, leaveHandler: () => { pointer = null; readout(); },
  });
  window.Slides = { viewer, state };

  let wanted = '';
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* not a name */ }
  open(Math.max(0, slides.findIndex(slide => slide.name === wanted)));
})();
