'use strict';
/* Language, palette, sortable tables and the confusion matrix. `Report` is the interface for gallery.js and slides.js. */
const Report = (() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const root = document.documentElement;
  const listeners = { language: [], palette: [], absent: [] };

  /* Storage may be blocked (private windows, local files); the choice then lasts until the page is closed. */
  function remembered(key) {
    try { return localStorage.getItem('mmseg_ignite.' + key); } catch { return null; }
  }
  function remember(key, value) {
    try { localStorage.setItem('mmseg_ignite.' + key, value); } catch { /* not remembered */ }
  }

  /* Return a text in the current language; {name} is replaced by values[name]. */
  function text(key, values = {}) {
    return data.texts[key][root.lang].replace(/\{(\w+)\}/g, (match, name) => values[name] ?? match);
  }
  function className(id) {
    const c = data.classes[id];
    if (!c) return text('nothing');
    return root.lang === 'ko' && c.ko !== c.en ? `${c.ko} (${c.en})` : c.en;
  }
  function count(value) {
    return value.toLocaleString('en-US');
  }

  function press(group, button) {
    for (const other of group.querySelectorAll('button')) other.setAttribute('aria-pressed', String(other === button));
  }
  /* Call `choose` with the value of the button that is pressed in a group. */
  function onSwitch(name, choose) {
    for (const group of document.querySelectorAll(`[data-switch="${name}"]`)) {
      group.addEventListener('click', event => {
        const button = event.target.closest('button');
        if (!button) return;
        press(group, button);
        choose(button.dataset.value);
      });
    }
  }
  function showChoice(name, value) {
    const group = document.querySelector(`[data-switch="${name}"]`);
    press(group, group.querySelector(`[data-value="${value}"]`));
  }

  function labelAll() {
    for (const element of document.querySelectorAll('[data-label]')) {
      element.setAttribute('aria-label', text(element.dataset.label));
      if (element.matches('button')) element.title = text(element.dataset.label);
    }
  }
  function setLanguage(language) {
    root.lang = language;
    document.title = text('title');
    labelAll();
    listeners.language.forEach(f => f());
  }
  function setPalette(palette) {
    root.dataset.palette = palette;
    listeners.palette.forEach(f => f());
  }

  function isShown(element) {
    return element.offsetParent !== null;
  }
  /* Show or hide classes in neither ground truth nor prediction, everywhere at once. */
  function toggleAbsent() {
    const shown = root.toggleAttribute('data-absent');
    for (const button of document.querySelectorAll('[data-absent].toggle')) button.setAttribute('aria-pressed', String(shown));
    listeners.absent.forEach(f => f());
  }

  /* A table wider than its container fades out at the side where it continues, with a hint above it. */
  function watchWidth(box) {
    const hint = document.createElement('p');
    hint.className = 'scroll-hint';
    for (const language of ['en', 'ko']) {
      const part = document.createElement('span');
      part.lang = language;
      part.textContent = data.texts.scroll_hint[language];
      hint.append(part);
    }
    box.before(hint);
    const update = () => {
      const rest = box.scrollWidth - box.clientWidth;
      hint.hidden = rest <= 1;
      box.classList.toggle('more-left', rest > 1 && box.scrollLeft > 1);
      box.classList.toggle('more-right', rest > 1 && box.scrollLeft < rest - 1);
      if (rest > 1) box.tabIndex = 0;
      else box.removeAttribute('tabindex');
    };
    box.addEventListener('scroll', update, { passive: true });
    const observer = new ResizeObserver(update);
    observer.observe(box);
    for (const child of box.children) observer.observe(child);
  }

  /* Tables: a heading sorts by its column, and reverses the order when pressed again; empty values stay last. */
  function sortable(table) {
    table.tHead.addEventListener('click', event => {
      const button = event.target.closest('.sort');
      if (button) sortBy(table, button.closest('th'));
    });
  }
  function sortBy(table, heading) {
    const first = heading.classList.contains('first') ? 'ascending' : 'descending';
    const opposite = { ascending: 'descending', descending: 'ascending' };
    const before = heading.getAttribute('aria-sort');
    const order = before === 'none' ? first : opposite[before];
    for (const other of table.tHead.querySelectorAll('th')) other.setAttribute('aria-sort', 'none');
    heading.setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const value = row => row.cells[heading.cellIndex].dataset.value ?? '';
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y, 'en', { numeric: true }) : x - y);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }

  /* Confusion matrix: one cell is in the tab order; arrow keys move the focus. */
  function confusion(table) {
    const counts = data.confusion, readout = document.getElementById('cell');
    const rowSums = counts.map(row => row.reduce((a, b) => a + b, 0));
    const columnSums = counts[0].map((_, j) => counts.reduce((sum, row) => sum + row[j], 0));
    const most = Math.max(1, ...counts.flat());
    const cells = [...table.tBodies[0].rows].map(row => [...row.querySelectorAll('[role=gridcell]')]);
    const heads = [...table.tHead.querySelectorAll('th')];
    let lit = null;

    const share = (value, total) => total ? value / total : null;
    const percent = value => value === null ? '–' : (100 * value).toFixed(value > 0 && value < .0995 ? 1 : 0) + ' %';
    function short(value) {
      if (!value) return '';
      const [unit, letter] = value >= 1e6 ? [1e6, 'M'] : value >= 1e3 ? [1e3, 'k'] : [1, ''];
      return (value / unit).toFixed(unit > 1 && value / unit < 10 ? 1 : 0) + letter;
    }
    function describe(i, j) {
      return text('cell', {
        truth: className(i), prediction: className(j), pixels: count(counts[i][j]),
        row: percent(share(counts[i][j], rowSums[i])), column: percent(share(counts[i][j], columnSums[j])),
      });
    }
    function fill(mode) {
      cells.forEach((row, i) => row.forEach((cell, j) => {
        const part = mode === 'absolute' ? Math.sqrt(counts[i][j] / most) : share(counts[i][j], mode === 'rows' ? rowSums[i] : columnSums[j]);
        const shown = mode === 'absolute' ? short(counts[i][j]) : part === null ? '–' : part < .0005 ? '' : (100 * part).toFixed(part < .0995 ? 1 : 0);
        cell.replaceChildren(shown);
        if (mode !== 'absolute' && shown && part !== null) {
          const pixels = document.createElement('span');
          pixels.className = 'count';
          pixels.textContent = short(counts[i][j]);
          cell.append(pixels);
        }
        cell.classList.toggle('dim', part === null);
        const heat = part ? .05 + .9 * part ** .75 : .02;
        cell.classList.toggle('strong', heat > .65);
        cell.style.setProperty('--tone', i === j ? 'var(--right)' : 'var(--wrong)');
        cell.style.setProperty('--heat', heat.toFixed(3));
      }));
    }
    function show(cell) {
      const i = cells.findIndex(row => row.includes(cell));
      if (i < 0) return;
      const j = cells[i].indexOf(cell);
      if (lit) lit.forEach(head => head.classList.remove('lit'));
      lit = [heads[j], cell.parentElement.cells[0]];
      lit.forEach(head => head.classList.add('lit'));
      readout.textContent = describe(i, j);
      cell.title = describe(i, j);
    }
    function move(event) {
      const i = cells.findIndex(row => row.includes(event.target)), j = cells[i]?.indexOf(event.target);
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (i < 0 || !step) return;
      event.preventDefault();
      let [row, column] = [i + step[0], j + step[1]];
      while (cells[row]?.[column] && !isShown(cells[row][column])) { row += step[0]; column += step[1]; }
      const next = cells[row]?.[column];
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
    function labelCells() {
      cells.forEach((row, i) => row.forEach((cell, j) => cell.setAttribute('aria-label', describe(i, j))));
    }
    /* Put the first visible cell in the tab order, unless another visible cell already is. */
    function enter() {
      if (cells.flat().some(cell => cell.tabIndex === 0 && isShown(cell))) return;
      cells.flat().forEach(cell => { cell.tabIndex = -1; });
      const first = cells.flat().find(isShown);
      if (first) first.tabIndex = 0;
    }
    enter();
    listeners.absent.push(enter);
    for (const kind of ['mouseover', 'focusin']) table.addEventListener(kind, event => show(event.target));
    table.addEventListener('keydown', move);
    onSwitch('normalise', fill);
    listeners.language.push(labelCells);
    fill('rows');
  }

  document.querySelectorAll('table.sortable').forEach(sortable);
  document.querySelectorAll('.wide').forEach(watchWidth);
  for (const button of document.querySelectorAll('[data-absent].toggle')) button.addEventListener('click', toggleAbsent);
  document.querySelectorAll('.matrix').forEach(confusion);
  for (const [name, set, allowed] of [['language', setLanguage, ['en', 'ko']], ['palette', setPalette, ['official', 'safe']]]) {
    onSwitch(name, value => { remember(name, value); set(value); });
    const kept = remembered(name);
    if (allowed.includes(kept)) { showChoice(name, kept); set(kept); }
  }
  setLanguage(root.lang);
  return { data, text, className, count, onSwitch, onPalette: f => listeners.palette.push(f), onLanguage: f => listeners.language.push(f) };
})();
