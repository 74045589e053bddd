'use strict';
/* The regions. Label maps are coloured here when a region comes near the screen, and freed when it leaves. */
(() => {
  const gallery = document.querySelector('.regions');
  if (!gallery) return;
  const KINDS = ['image', 'truth', 'prediction', 'error'], IGNORE = 255;
  const WRONG = [194, 24, 91], RIGHT = [255, 255, 255];
  const classes = Report.data.classes;
  const state = { opacity: .55, panels: new Set(['image', 'truth', 'prediction']), hidden: new Set() };
  const scratch = document.createElement('canvas');

  /* ---- decoding ---- */
  function bytes(base64) {
    return Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  }
  async function inflate(base64) {
    const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream('deflate'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  async function decodeImage(base64) {
    const image = new Image();
    image.src = 'data:image/jpeg;base64,' + base64;
    await image.decode();
    return image;
  }

  /* ---- colouring ---- */
  function rgb(hex) {
    return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  }
  /* Colours of each class, its stripes and its border in the current palette. */
  function paints() {
    const safe = document.documentElement.dataset.palette === 'safe';
    return classes.map(c => {
      const colour = rgb(safe ? c.safe : c.official);
      return { colour, stripe: safe && c.hatched ? colour.map(v => v * .3) : colour, border: colour.map(v => v * .35) };
    });
  }
  /* Return a function from pixel index to colour: class colours with dark borders, null for hidden classes and other ids. */
  function labelPainter(ids, width) {
    const paint = paints(), period = Math.max(6, Math.round(Math.max(width, ids.length / width) / 70));
    return i => {
      const id = ids[i], p = paint[id];
      if (!p || state.hidden.has(id)) return null;
      const x = i % width;
      if ((x && ids[i - 1] !== id) || (i >= width && ids[i - width] !== id)) return p.border;
      return (x + (i - x) / width) % period < period * .35 ? p.stripe : p.colour;
    };
  }
  /* Errors are magenta, correct pixels white; a pixel is shown if its true or its predicted class is shown. */
  function errorPainter(truth, prediction) {
    return i => {
      if (truth[i] === IGNORE || (state.hidden.has(truth[i]) && state.hidden.has(prediction[i]))) return null;
      return truth[i] === prediction[i] ? RIGHT : WRONG;
    };
  }
  function colourLayer(region, kind) {
    const { width, height, truth, prediction } = region;
    const canvas = document.createElement('canvas');
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext('2d'), picture = context.createImageData(width, height), out = picture.data;
    const painter = kind === 'error' ? errorPainter(truth, prediction) : labelPainter(region[kind], width);
    for (let i = 0, o = 0; i < width * height; i++, o += 4) {
      const colour = painter(i);
      if (colour) { out[o] = colour[0]; out[o + 1] = colour[1]; out[o + 2] = colour[2]; out[o + 3] = 255; }
    }
    context.putImageData(picture, 0, 0);
    return canvas;
  }
  /* Tissue in gray: the pink of eosin would turn the yellow of stroma into the orange of inflammation. */
  function grayLayer(image, width, height) {
    const canvas = document.createElement('canvas');
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0, width, height);
    context.globalCompositeOperation = 'saturation';
    context.fillStyle = '#808080';
    context.fillRect(0, 0, width, height);
    return canvas;
  }

  /* ---- a region ---- */
  class Region {
    constructor(element) {
      this.element = element;
      this.panes = [...element.querySelectorAll('.pane')];
      this.near = false;
    }
    async load() {
      if (this.image) return;
      this.loading ??= (async () => {
        const packed = JSON.parse(this.element.querySelector('.pixels').textContent);
        const [image, truth, prediction] = await Promise.all([decodeImage(packed.image), inflate(packed.truth), inflate(packed.prediction)]);
        const { width, height, um } = packed;
        Object.assign(this, { width, height, um, truth, prediction, image, gray: grayLayer(image, width, height), layers: {} });
      })();
      await this.loading;
    }
    /* Free the memory of a region far from the screen. */
    unload() {
      this.loading = this.image = this.gray = this.layers = this.truth = this.prediction = null;
      for (const pane of this.panes) { const canvas = pane.querySelector('canvas'); canvas.width = canvas.height = 1; }
      this.element.classList.remove('drawn');
    }
    recolour() {
      if (this.image) this.layers = {};
    }
    /* Draw the tissue and, over classes that are shown, gray tissue tinted with their colours. */
    draw(canvas, kind) {
      const { width, height } = this;
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const context = canvas.getContext('2d');
      context.drawImage(this.image, 0, 0, width, height);
      if (kind === 'image' || !state.opacity) return;
      const layer = this.layers[kind] ??= colourLayer(this, kind);
      scratch.width = width; scratch.height = height;
      const mixed = scratch.getContext('2d');
      mixed.drawImage(this.gray, 0, 0);
      mixed.globalAlpha = state.opacity;
      mixed.drawImage(layer, 0, 0);
      mixed.globalAlpha = 1;
      mixed.globalCompositeOperation = 'destination-in';
      mixed.drawImage(layer, 0, 0);
      context.globalAlpha = Math.min(1, 4 * state.opacity);
      context.drawImage(scratch, 0, 0);
      context.globalAlpha = 1;
    }
    paint() {
      if (!this.image) return;
      for (const pane of this.panes) if (!pane.hidden) this.draw(pane.querySelector('canvas'), pane.dataset.kind);
      this.element.classList.add('drawn');
    }
    async show() {
      try { await this.load(); } catch (error) { reportError(error); return; }
      if (this.near || viewer.region === this) this.paint();
      else this.unload();
    }
  }
  function reportError(error) {
    const old = typeof DecompressionStream === 'undefined';
    document.querySelector('.load-error').textContent = old ? Report.text('too_old') : String(error);
  }

  /* ---- enlarged view: one transform for all panels ---- */
  const dialog = document.getElementById('viewer');
  const viewer = {
    region: null, x: 0, y: 0, zoom: 1, stages: [],
    async open(region) {
      this.region = region;
      dialog.querySelector('h3').textContent = region.element.dataset.roi;
      if (!dialog.open) dialog.showModal();
      await region.show();
      if (this.region === region && region.image) { this.build(); this.fit(); }
    },
    build() {
      const holder = dialog.querySelector('.stages');
      this.stages = KINDS.filter(k => state.panels.has(k)).map(kind => {
        const stage = document.createElement('div'), caption = document.createElement('span');
        const canvas = document.createElement('canvas'), bar = document.createElement('span'), cross = document.createElement('span');
        stage.className = 'stage'; caption.className = 'caption'; bar.className = 'bar'; cross.className = 'cross';
        caption.textContent = Report.text(kind);
        cross.hidden = true;
        stage.append(canvas, caption, bar, cross);
        return { stage, canvas, bar, cross, kind };
      });
      holder.dataset.panels = this.stages.length;
      holder.replaceChildren(...this.stages.map(s => s.stage));
      this.paint();
    },
    paint() {
      if (this.region?.image) for (const s of this.stages) this.region.draw(s.canvas, s.kind);
    },
    fit() {
      const { clientWidth: w, clientHeight: h } = this.stages[0].stage, { width, height } = this.region;
      this.zoom = Math.min(w / width, h / height);
      this.x = (w - width * this.zoom) / 2; this.y = (h - height * this.zoom) / 2;
      this.applyTransform();
    },
    applyTransform() {
      for (const s of this.stages) {
        s.canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
        s.canvas.style.imageRendering = this.zoom > 4 ? 'pixelated' : 'auto';
        scaleBar(s, this.region.um, this.zoom);
      }
    },
    zoomAt(x, y, factor) {
      const zoom = Math.min(40, Math.max(.05, this.zoom * factor)), change = zoom / this.zoom;
      this.x = x - (x - this.x) * change; this.y = y - (y - this.y) * change; this.zoom = zoom;
      this.applyTransform();
    },
    zoomMiddle(factor) {
      const { clientWidth: w, clientHeight: h } = this.stages[0].stage;
      this.zoomAt(w / 2, h / 2, factor);
    },
    pan(dx, dy) { this.x += dx; this.y += dy; this.applyTransform(); },
    /* Show the classes under the pointer, and mark the same pixel in the other panels. */
    point(x, y, under) {
      const r = this.region, px = Math.floor((x - this.x) / this.zoom), py = Math.floor((y - this.y) / this.zoom);
      const inside = px >= 0 && py >= 0 && px < r.width && py < r.height, i = py * r.width + px;
      const name = (id, none) => id === IGNORE ? Report.text(none) : Report.className(id);
      document.getElementById('pointer').textContent = inside ? Report.text('at_pointer', { truth: name(r.truth[i], 'unannotated'), prediction: name(r.prediction[i], 'nothing') }) : '';
      for (const s of this.stages) {
        s.cross.hidden = !inside || s.stage === under;
        s.cross.style.left = x + 'px'; s.cross.style.top = y + 'px';
      }
    },
    step(by) {
      const all = [...gallery.children].map(e => regions.get(e)), at = all.indexOf(this.region);
      this.close();
      this.open(all[(at + by + all.length) % all.length]);
    },
    close() {
      const left = this.region;
      this.region = null; this.stages = [];
      dialog.querySelector('.stages').replaceChildren();
      if (left && !left.near) left.unload();
    },
  };
  function scaleBar(stage, um, zoom) {
    stage.bar.hidden = !um;
    if (!um) return;
    const limit = stage.stage.clientWidth / 3;
    const length = [5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2].find(n => n / um * zoom <= limit) ?? 1;
    stage.bar.style.width = length / um * zoom + 'px';
    stage.bar.textContent = length + ' µm';
  }
  function watchViewer() {
    const holder = dialog.querySelector('.stages');
    let drag = null;
    const locate = event => {
      const stage = event.target.closest('.stage');
      if (!stage) return null;
      const box = stage.getBoundingClientRect();
      return { stage, x: event.clientX - box.left, y: event.clientY - box.top };
    };
    holder.addEventListener('wheel', event => {
      const at = locate(event);
      if (!at) return;
      event.preventDefault();
      const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 * event.deltaY : event.deltaY;
      viewer.zoomAt(at.x, at.y, Math.exp(-pixels * .0015));
    }, { passive: false });
    holder.addEventListener('pointerdown', event => {
      const at = locate(event);
      if (!at) return;
      event.preventDefault();
      drag = { x: event.clientX, y: event.clientY };
      at.stage.setPointerCapture(event.pointerId);
      at.stage.classList.add('drag');
    });
    holder.addEventListener('pointermove', event => {
      const at = locate(event);
      if (!at) return;
      if (drag) { viewer.pan(event.clientX - drag.x, event.clientY - drag.y); drag = { x: event.clientX, y: event.clientY }; }
      viewer.point(at.x, at.y, at.stage);
    });
    for (const kind of ['pointerup', 'pointercancel']) holder.addEventListener(kind, event => { drag = null; locate(event)?.stage.classList.remove('drag'); });
    const keys = {
      '+': () => viewer.zoomMiddle(1.25), '=': () => viewer.zoomMiddle(1.25), '-': () => viewer.zoomMiddle(.8), 0: () => viewer.fit(),
      ArrowLeft: () => viewer.pan(60, 0), ArrowRight: () => viewer.pan(-60, 0), ArrowUp: () => viewer.pan(0, 60), ArrowDown: () => viewer.pan(0, -60),
    };
    dialog.addEventListener('keydown', event => {
      if (event.target.matches('input') || !keys[event.key] || !viewer.stages.length) return;
      event.preventDefault();
      keys[event.key]();
    });
    for (const button of dialog.querySelectorAll('[data-step]')) button.addEventListener('click', () => viewer.step(Number(button.dataset.step)));
    document.getElementById('close').addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => viewer.close());
    window.addEventListener('resize', () => { if (viewer.stages.length) viewer.fit(); });
  }

  /* ---- controls ---- */
  const regions = new Map([...gallery.children].map(element => [element, new Region(element)]));
  let waiting = false;
  /* Redraw the regions near the screen, at most once per frame. */
  function repaint() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const region of regions.values()) if (region.near) region.paint();
      viewer.paint();
    });
  }
  function recolour() {
    for (const region of regions.values()) region.recolour();
    repaint();
  }
  function setOpacity(percent) {
    state.opacity = percent / 100;
    for (const input of document.querySelectorAll('.opacity')) { input.value = percent; input.nextElementSibling.textContent = percent + ' %'; }
    repaint();
  }
  function setPanels() {
    for (const button of document.querySelectorAll('[data-panel]')) button.setAttribute('aria-pressed', String(state.panels.has(button.dataset.panel)));
    gallery.dataset.panels = state.panels.size;
    for (const pane of gallery.querySelectorAll('.pane')) pane.hidden = !state.panels.has(pane.dataset.kind);
    document.querySelector('.error-key').hidden = !state.panels.has('error');
    if (viewer.stages.length) { viewer.build(); viewer.fit(); }
    repaint();
  }
  function togglePanel(kind) {
    if (!state.panels.delete(kind)) state.panels.add(kind);
    if (!state.panels.size) state.panels.add(kind);
    setPanels();
  }
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
  function labelPanes() {
    for (const region of regions.values()) for (const pane of region.panes) {
      const roi = region.element.dataset.roi;
      pane.setAttribute('aria-label', Report.text('enlarge', { roi, panel: Report.text(pane.dataset.kind) }));
    }
  }
  function order(how) {
    const value = element => element.dataset.miou === '' ? Infinity : Number(element.dataset.miou);
    const name = element => element.dataset.roi;
    const compare = {
      worst: (a, b) => value(a) - value(b) || 0, best: (a, b) => (value(a) === Infinity) - (value(b) === Infinity) || value(b) - value(a) || 0,
      name: (a, b) => name(a).localeCompare(name(b), 'en', { numeric: true }),
    }[how];
    gallery.append(...[...gallery.children].sort(compare));
  }

  document.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (!button) return;
    if (button.dataset.panel) togglePanel(button.dataset.panel);
    else if (button.dataset.toggle) toggleClass(Number(button.dataset.toggle), event.shiftKey);
    else if (button.dataset.all) setHidden(new Set(button.dataset.all === 'true' ? [] : classes.keys()));
    else if (button.classList.contains('pane')) viewer.open(regions.get(button.closest('.region')));
  });
  for (const input of document.querySelectorAll('.opacity')) input.addEventListener('input', () => setOpacity(Number(input.value)));
  Report.onSwitch('order', order);
  Report.onPalette(recolour);
  Report.onLanguage(labelPanes);
  watchViewer();
  labelPanes();
  setPanels();
  order('worst');
  const observer = new IntersectionObserver(entries => {
    if (matchMedia('print').matches) return; // keep regions drawn while printing
    for (const entry of entries) {
      const region = regions.get(entry.target);
      region.near = entry.isIntersecting;
      if (region.near) region.show();
      else if (region.image && viewer.region !== region) region.unload();
    }
  }, { rootMargin: '800px 0px' });
  for (const element of gallery.children) observer.observe(element);
})();
