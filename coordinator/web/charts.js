'use strict';
// The curves: one small chart a figure, drawn by uPlot, their cursors tied together.
const Q = window.Q = {};

Q.h = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === 'onclick') element.addEventListener('click', value);
    else if (key === 'style') for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
};

Q.number = (v) => {
  if (v === null || v === undefined || !Number.isFinite(v)) return '–';
  const a = Math.abs(v);
  if (a >= 10000) return Math.round(v / 100) / 10 + 'k';
  if (a >= 100) return v.toFixed(0);
  if (a >= 10) return v.toFixed(1);
  if (a >= 0.01 || a === 0) return v.toFixed(a === 0 ? 0 : 3);
  return v.toExponential(1);
};
Q.percent = (v) => (v === null || v === undefined ? '–' : (100 * v).toFixed(1) + '\u00a0%');

const ratio = { range: (_, lo, hi) => [Math.max(0, Math.floor((lo - 0.02) * 20) / 20), Math.min(1, Math.ceil((hi + 0.02) * 20) / 20)] };
// [title, [[column, label]…], scale, hint shown when there is nothing]
const CHARTS = [
  ['Reward', [['reward_mean', 'mean']], ratio],
  ['Vote agreement', [['agreement_mean', 'agreement'], ['answered_ratio', 'answered']], ratio],
  ['Held-out accuracy', 'evaluations', ratio, 'no evaluation yet'],
  ['KL to the start', [['kl', 'nats a token']]],
  ['Entropy', [['vote_entropy_mean', 'of votes, nats'], ['entropy', 'of tokens, nats']]],
  ['Different answers', [['distinct_answers_mean', 'a group']]],
  ['Most frequent answer', [['common_answer_ratio', 'share of groups that vote for it']], ratio],
  ['Response length', [['response_length_mean', 'tokens']]],
  ['Share of groups', [['share_used', 'teach'], ['share_zero_variance', 'unanimous'], ['share_dropped', 'dropped']], ratio],
  ['Gradient norm', [['grad_norm', 'before clipping']]],
  ['Speed', [['tokens_per_second', 'sampled tok/s'], ['learner_tokens_per_second', 'trained tok/s']]],
  ['Time of a step', [['step_seconds', 'all, s'], ['wait_batch_seconds', 'sampling, s'], ['learner_seconds', 'learner, s']]],
];
Q.keys = ['reward_mean', 'distinct_answers_mean', 'agreement_mean', 'answered_ratio', 'kl', 'vote_entropy_mean', 'entropy', 'response_length_mean', 'votes_used',
  'votes_zero_variance', 'votes_no_majority', 'votes_below_threshold', 'votes_above_band', 'votes_tie', 'grad_norm', 'tokens_per_second',
  'learner_tokens_per_second', 'step_seconds', 'wait_batch_seconds', 'learner_seconds', 'loss', 'common_answer_ratio'];

Q.columns = { step: [] };
Q.evaluations = {};

// Adds an answer of /api/v1/steps.
Q.add = (answer) => {
  const had = Q.columns.step.length, more = answer.columns;
  for (const key of new Set([...Object.keys(Q.columns), ...Object.keys(more)])) {
    const column = Q.columns[key] || (Q.columns[key] = new Array(had).fill(null));
    for (let i = 0; i < answer.count; i++) column.push(more[key] ? more[key][i] : null);
  }
  const c = Q.columns, n = c.step.length;
  const dropped = ['votes_no_majority', 'votes_below_threshold', 'votes_above_band', 'votes_tie'];
  for (const key of ['share_used', 'share_zero_variance', 'share_dropped']) c[key] = c[key] || [];
  for (let i = had; i < n; i++) {
    const get = (key) => (c[key] && c[key][i]) || 0;
    const used = get('votes_used'), flat = get('votes_zero_variance'), lost = dropped.reduce((s, k) => s + get(k), 0);
    const all = used + flat + lost;
    c.share_used[i] = all ? used / all : null;
    c.share_zero_variance[i] = all ? flat / all : null;
    c.share_dropped[i] = all ? lost / all : null;
  }
};

const colour = (i) => getComputedStyle(document.documentElement).getPropertyValue('--c' + (i + 1)).trim();
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// x and the series of a chart; steps are counted from 1, versions from 0.
function data(series) {
  if (series === 'evaluations') {
    const versions = Object.keys(Q.evaluations).map(Number).sort((a, b) => a - b);
    const get = (key) => versions.map((v) => Q.evaluations[v][key]);
    return [[versions, get('greedy'), get('mean'), get('vote')], ['greedy', 'mean of samples', 'vote']];
  }
  const there = series.filter(([key]) => (Q.columns[key] || []).some((v) => v !== null));
  return [[Q.columns.step.map((s) => s + 1), ...there.map(([key]) => Q.columns[key])], there.map(([, label]) => label)];
}

const sync = window.uPlot ? uPlot.sync('steps') : null;
const drawn = [];

function legend(card, values, labels, at) {
  const box = card.querySelector('.legend');
  box.replaceChildren(...labels.map((label, i) => {
    const column = values[i + 1];
    let j = at === null ? column.length - 1 : at;
    while (at === null && j > 0 && column[j] === null) j--;
    return Q.h('i', { style: { '--k': colour(i) } }, label + ' ' + Q.number(column[j]));
  }));
}

function draw(card, title, series, scale, hint) {
  const [values, labels] = data(series);
  const body = card.querySelector('.plot');
  if (!labels.length || values[0].length < 1) {
    card.querySelector('.legend').replaceChildren();
    body.replaceChildren(Q.h('div', { class: 'none' }, hint || (Q.live ? 'nothing yet' : 'not recorded in this run')));
    return null;
  }
  const few = values[0].length < 60;
  const axis = { stroke: ink('--quiet'), grid: { stroke: ink('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui, sans-serif' };
  const options = {
    width: Math.max(200, body.clientWidth), height: 150, padding: [8, 14, 0, 0], legend: { show: false },
    cursor: { sync: series === 'evaluations' ? undefined : { key: sync.key }, points: { size: 6 }, y: false },
    scales: { x: { time: false, range: series === 'evaluations' ? (u) => [0, Math.max(1, (u.data && u.data[0].at(-1)) || 0, Q.columns.step.length)] : undefined }, y: scale || { range: (u, min, max) => (min === max ? [min || 0, (min || 0) + 1] : uPlot.rangeNum(min, max, 0.1, true)) } },
    axes: [{ ...axis, size: 26, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] }, { ...axis, size: 44, space: 34, values: (_, ticks) => ticks.map((v) => (v === null ? '' : Q.number(v).replace(/\.0+$|(\.\d*[1-9])0+$/, '$1'))) }],
    series: [{}, ...labels.map((label, i) => ({ label, stroke: colour(i), width: 1.6, spanGaps: true, points: { show: few, size: 4, fill: colour(i) } }))],
    hooks: { setCursor: [(u) => legend(card, u.data, labels, u.cursor.idx === undefined ? null : u.cursor.idx)] },
  };
  body.replaceChildren();
  legend(card, values, labels, null);
  return new uPlot(options, values, body);
}

// Draws all charts, or brings new data into them.
Q.curves = (again) => {
  const root = document.getElementById('curves');
  if (!root.children.length) {
    for (const [title] of CHARTS) root.append(Q.h('div', { class: 'chart' }, Q.h('h3', null, title), Q.h('div', { class: 'legend' }), Q.h('div', { class: 'plot' })));
  }
  CHARTS.forEach(([title, series, scale, hint], i) => {
    const card = root.children[i], [values, labels] = data(series);
    const plot = drawn[i];
    if (!again && plot && plot.series.length === labels.length + 1 && (values[0].length < 60) === plot.few) {
      plot.setData(values);
      if (plot.cursor.idx === undefined || plot.cursor.idx === null) legend(card, values, labels, null);
      return;
    }
    if (plot) plot.destroy();
    drawn[i] = draw(card, title, series, scale, hint);
    if (drawn[i]) drawn[i].few = values[0].length < 60;
  });
};

addEventListener('resize', () => drawn.forEach((plot) => {
  if (plot) plot.setSize({ width: Math.max(200, plot.root.parentElement.clientWidth), height: 150 });
}));
