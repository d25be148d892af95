'use strict';
// The page: loads the history, listens for news, fills the tiles and the fleet. In a report the answers are embedded and nothing is fetched.
{
  const h = Q.h, $ = (id) => document.getElementById(id);
  const embedded = window.QUORUM_REPORT || null;

  Q.api = async (path) => {
    if (embedded) {
      if (path in embedded.answers) return embedded.answers[path];
      throw new Error('this report holds sample groups only; open the run with `coordinator view` to see all');
    }
    const response = await fetch('api/v1/' + path);
    if (response.ok) return response.json();
    const text = await response.text();
    let error = text.trim();
    try { error = JSON.parse(text).error; } catch (_) { /* plain text: no token, or a foreign host */ }
    throw new Error(error || response.statusText);
  };
  Q.image = (hash) => (embedded ? embedded.images[hash] || '' : 'api/v1/images/' + hash);

  const WORDS = { starting: 'Starting', healthy: 'Healthy', watch: 'Watch', collapsing: 'Collapsing' };
  const time = (s) => {
    if (!Number.isFinite(s)) return '–';
    s = Math.max(0, Math.round(s));
    const hours = Math.floor(s / 3600), minutes = Math.floor(s / 60) % 60;
    return hours ? hours + ' h ' + minutes + ' min' : minutes ? minutes + ' min ' + (s % 60) + ' s' : s + ' s';
  };
  const last = (key) => { const c = Q.columns[key] || []; for (let i = c.length - 1; i >= 0; i--) if (c[i] !== null) return c[i]; return null; };
  const tile = (value, label, extra) => h('div', { class: 'tile' }, h('b', null, value), h('span', null, label), extra || null);

  let run = null;
  // When `run` was told, by this clock: what counts time is counted on from there.
  let told = Date.now();
  const since = () => (Date.now() - told) / 1000;
  const LATE = 6;
  const seen = new Map();

  function tiles() {
    const s = run.status || {}, versions = Object.keys(run.evaluations || {}).map(Number).sort((a, b) => a - b);
    const first = versions.length ? run.evaluations[versions[0]] : null, newest = versions.length ? run.evaluations[versions.at(-1)] : null;
    const workers = (s.members || []).filter((m) => m.role === 'rollout_worker').length;
    const step = last('step_seconds'), left = run.steps - run.committed;
    const bar = h('progress', { max: run.steps, value: run.committed });
    const list = [tile(run.committed + ' of ' + run.steps, run.live ? s.phase || 'steps' : 'steps', bar)];
    if (last('reward_mean') !== null) list.push(tile(Q.number(last('reward_mean')), 'reward'));
    if (last('agreement_mean') !== null) list.push(tile(Q.percent(last('agreement_mean')), 'vote agreement'));
    else if (last('loss') !== null) list.push(tile(Q.number(last('loss')), 'loss'));
    if (newest) list.push(tile(Q.percent(newest.greedy), versions.length > 1 ? 'held-out greedy, began at ' + Q.percent(first.greedy) : 'held-out greedy at version ' + versions[0]));
    if (last('tokens_per_second') !== null) list.push(tile(Q.number(last('tokens_per_second')), 'sampled tokens a second'));
    if (run.live) {
      list.push(tile(String(workers), workers === 1 ? 'rollout worker' : 'rollout workers'));
      list.push(tile(left > 0 && step !== null ? time(left * step) : time(s.seconds), left > 0 && step !== null ? 'left for the steps' : 'so far'));
    }
    $('tiles').replaceChildren(...list);
  }

  function verdict() {
    const v = run.verdict, box = $('verdict');
    box.className = v.level;
    box.children[0].textContent = WORDS[v.level] || v.level;
    box.children[1].textContent = v.line;
    $('reasons').replaceChildren(...v.reasons.slice(1).map((r) => h('li', null, r.text)));
    document.title = (WORDS[v.level] || '') + ' · ' + run.committed + '/' + run.steps + ' · Quorum';
  }

  function fleet() {
    $('fleet-section').hidden = !run.live;
    if (!run.live) return;
    const now = Date.now(), members = (run.status && run.status.members) || [];
    for (const [, row] of seen) row.here = false;
    for (const m of members) seen.set(m.id, { ...m, here: true, at: now });
    for (const [id, row] of seen) if (!row.here && now - row.at > 600000) seen.delete(id);
    const rows = [...seen.values()].sort((a, b) => (b.here - a.here) || a.id.localeCompare(b.id, undefined, { numeric: true }));
    const late = (row) => row.here && row.last_seen_seconds_ago > LATE;
    const ago = (row) => !row.here ? 'gone ' + time((now - row.at) / 1000) + ' ago' : late(row) ? time(row.last_seen_seconds_ago + since()) + ' ago' : 'just now';
    $('fleet').tBodies[0].replaceChildren(...rows.map((m) => h('tr', { class: !m.here ? 'gone' : late(m) ? 'late' : null, 'data-id': m.id },
      h('td', { title: m.pid ? 'process ' + m.pid : '' }, m.id), h('td', null, m.role.replace('_', ' ')), h('td', null, m.instruction_set || '–'),
      h('td', { class: 'n' }, String(m.version)), h('td', { class: 'n' }, m.role === 'learner' ? '–' : String(m.leases)), h('td', { class: 'n' }, m.role === 'learner' ? '–' : String(m.delivered)),
      h('td', { class: 'n' }, m.role === 'learner' ? '–' : Q.number(m.tokens_per_second)), h('td', { class: 'n' }, ago(m)))));
  }

  function accuracy() {
    const versions = Object.keys(run.evaluations || {}).map(Number).sort((a, b) => a - b);
    $('table-section').hidden = !versions.length;
    const cell = (f, key) => h('td', { class: 'n' }, Q.percent(f[key]));
    $('table').replaceChildren(
      h('thead', null, h('tr', null, h('th', null, 'Version'), ...['Questions', 'Greedy', 'Mean of samples', 'Mean at low temperature', 'Vote'].map((t) => h('th', { class: 'n' }, t)))),
      h('tbody', null, ...versions.map((v) => { const f = run.evaluations[v]; return h('tr', null, h('td', null, v === 0 ? '0 (start)' : String(v)), h('td', { class: 'n' }, String(f.n)), cell(f, 'greedy'), cell(f, 'mean'), cell(f, 'mean_t03'), cell(f, 'vote')); })));
  }

  function news(fresh) {
    // Another run has taken the port over.
    if (run && fresh.run_id !== run.run_id) { location.reload(); return; }
    run = { ...run, ...fresh };
    told = Date.now();
    Q.live = run.live;
    show();
  }

  function show() {
    $('run').textContent = 'run ' + run.run_id + ' · ' + run.run_dir;
    $('note').hidden = !run.note;
    $('note').textContent = run.note || '';
    verdict(); tiles(); fleet(); accuracy();
    $('foot').textContent = 'Quorum ' + run.quorum_version + ' · configuration ' + run.config_digest + ' · weights ' + (run.weights_sha256 || 'not published yet');
  }

  // One request at a time; news that comes meanwhile is fetched by the next round.
  let busy = false;
  async function catchUp() {
    if (busy) return;
    busy = true;
    try {
      const fresh = Q.columns.step.length < run.committed;
      if (fresh) Q.add(await Q.api('steps?from=' + Q.columns.step.length + '&keys=' + Q.keys.join(',')));
      const moved = JSON.stringify(Q.evaluations) !== JSON.stringify(run.evaluations || {});
      Q.evaluations = run.evaluations || {};
      if (fresh || moved) { Q.curves(); tiles(); }
      if (fresh && stream && (!$('list').children.length || $('list').scrollTop === 0)) Q.list();
    } finally { busy = false; }
  }

  async function begin() {
    const history = embedded ? embedded.answers.steps : Q.api('steps?keys=' + Q.keys.join(','));
    const [first, steps] = await Promise.all([Q.api('run'), history]);
    if (embedded) { first.live = false; $('filters').hidden = true; }
    $('config').textContent = first.config_toml || '';
    Q.add(steps);
    Q.evaluations = first.evaluations || {};
    news(first);
    Q.curves();
    performance.mark('drawn');
    await Q.list();
    const group = document.querySelector('#list .group');
    if (group && (embedded || !matchMedia('(max-width: 760px)').matches)) await Q.open(...group.dataset.at.split('/'));
    performance.mark('ready');
    if (!run.live) { $('link').textContent = embedded ? 'report' : 'not running'; return; }
    listen();
    // Browsers open six connections to a server at most: a page that nobody sees gives its own back.
    document.addEventListener('visibilitychange', () => (document.hidden ? hush() : listen()));
    setInterval(() => { if (!document.hidden) fleet(); }, 1000);
  }

  let stream = null, again = null;
  function hush() {
    clearTimeout(again);
    if (stream) stream.close();
    stream = null;
  }

  function listen() {
    hush();
    stream = new EventSource('api/v1/events');
    stream.addEventListener('run', (event) => { news(JSON.parse(event.data)); $('link').textContent = '● live'; catchUp().catch(() => {}); });
    stream.onerror = () => {
      $('link').textContent = run.status && run.status.complete ? 'the run is over' : 'no connection to the coordinator …';
      // Refused for good, for example because too many listen: ask from time to time.
      if (stream && stream.readyState === EventSource.CLOSED) { hush(); again = setTimeout(poll, 5000); }
    };
  }

  async function poll() {
    try { news(await Q.api('run')); $('link').textContent = '● every few seconds'; await catchUp(); } catch (_) { /* said already */ }
    listen();
  }

  $('theme').addEventListener('click', () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue('--bg').trim() === '#12151a';
    document.documentElement.dataset.theme = dark ? 'light' : 'dark';
    try { localStorage.setItem('theme', document.documentElement.dataset.theme); } catch (_) { /* a private window */ }
    Q.curves(true);
  });
  try { const theme = localStorage.getItem('theme'); if (theme) document.documentElement.dataset.theme = theme; } catch (_) { /* a private window */ }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => Q.curves(true));
  begin().catch((error) => { $('link').textContent = String(error.message || error); });
}
