'use strict';
// The group browser: what was asked, answered, voted and paid.
{
  const h = Q.h;
  const OUTCOMES = {
    used: ['teaches', 'rewards differ: the majority is paid'], zero_variance: ['unanimous', 'all samples agree: nothing to learn'],
    tie: ['tie', 'two answers lead together: nobody is paid'], no_majority: ['no majority', 'too few answers'],
    below_threshold: ['low agreement', 'agreement below vote.band_low: dropped'], above_band: ['high agreement', 'agreement above vote.band_high: dropped'],
  };
  const colour = (i) => 'var(--c' + ((i % 6) + 1) + ')';
  const chip = (outcome) => { const [name, why] = OUTCOMES[outcome] || [outcome, '']; return h('span', { class: 'chip ' + outcome, title: why }, name); };
  const pool = (g) => g.answered + g.missing;
  const bar = (g) => h('div', { class: 'bar' }, ...g.clusters.map((c, i) => h('i', { style: { width: (100 * c.votes) / pool(g) + '%', background: colour(i) }, title: c.answer + ': ' + c.votes })));
  const plain = (text) => (text === null ? '(question not found)' : text.replaceAll('<image>', ' ').trim());
  let open = null;

  const item = (g) => h('button', { class: 'group', type: 'button', 'data-at': g.step + '/' + g.slot, onclick: () => Q.open(g.step, g.slot) },
    h('div', { class: 'top' }, h('span', null, 'step ' + (g.step + 1)), chip(g.outcome), h('span', null, Math.round(100 * g.agreement) + ' % agree'),
      g.missing ? h('span', null, g.missing + ' missing') : null, g.change !== null ? h('span', null, Math.round(100 * g.change) + ' % moved') : null),
    h('div', { class: 'q' }, plain(g.question)), bar(g));

  Q.list = async () => {
    const form = new FormData(document.getElementById('filters'));
    const query = new URLSearchParams(form.get('preset'));
    if (form.get('step')) query.set('step', Number(form.get('step')) - 1);
    if (form.get('text')) query.set('text', form.get('text'));
    const found = document.getElementById('found');
    try {
      const answer = await Q.api('groups' + (query.size ? '?' + query : ''));
      const range = answer.until - answer.from <= 1 ? 'step ' + (answer.from + 1) : 'steps ' + (answer.from + 1) + '–' + (answer.groups.length ? Math.max(...answer.groups.map((g) => g.step)) + 1 : answer.until);
      found.textContent = answer.matching + ' of ' + answer.searched + ' groups in ' + range + (answer.groups.length < answer.matching ? ', the first ' + answer.groups.length + ' shown' : '');
      document.getElementById('list').replaceChildren(...answer.groups.map(item));
      mark();
    } catch (error) { found.textContent = String(error.message || error); }
  };

  const mark = () => document.querySelectorAll('#list .group').forEach((b) => b.setAttribute('aria-current', b.dataset.at === open));

  const votes = (g) => {
    const rows = g.clusters.map((c, i) => [c.answer, c.votes, colour(i), c.answer === g.majority]);
    if (g.missing) rows.push(['no answer', g.missing, 'var(--quiet)', false]);
    return h('div', { class: 'votes' }, ...rows.flatMap(([answer, n, k, win]) => [
      h('span', { class: win ? 'a win' : 'a' }, win ? answer + ' ✓' : answer),
      h('span', { class: 'b' }, h('i', { style: { width: (100 * n) / pool(g) + '%', background: k } })), h('span', { class: 'n' }, n + ' of ' + pool(g))]));
  };

  const response = (r) => h('tr', null,
    h('td', { class: 'n' }, String(r.sample + 1)), h('td', null, r.answer === null ? '–' : r.answer),
    h('td', { class: r.reward > 0 ? 'n paid' : 'n' }, Q.number(r.reward)), h('td', { class: 'n' }, r.tokens === null ? '–' : String(r.tokens)),
    h('td', { class: 'n', title: 'sum over the response, nats' }, r.logprob === null ? '–' : r.logprob.toFixed(2)),
    h('td', { class: 'text' }, r.text === null ? '' : r.text, r.finish === 'length' ? h('span', { class: 'chip', title: 'stopped at rollout.max_new_tokens' }, 'cut off') : null));

  const visit = (v) => h('button', { type: 'button', 'aria-current': v.step + '/' + v.slot === open, title: OUTCOMES[v.outcome] ? OUTCOMES[v.outcome][0] : v.outcome, onclick: () => Q.open(v.step, v.slot) },
    'version ' + v.version, bar(v), h('span', { class: 'quiet' }, v.majority === null ? '–' : v.majority));

  const notice = (text) => h('p', { class: 'notice' }, text);
  const picture = (hash) => {
    const image = h('img', { src: Q.image(hash), alt: 'image of the question' });
    image.addEventListener('load', () => image.classList.toggle('small', image.naturalWidth < 128));
    image.addEventListener('error', () => image.replaceWith(notice('image ' + hash.slice(0, 12) + '… cannot be shown')));
    return image;
  };

  Q.open = async (step, slot) => {
    open = step + '/' + slot;
    mark();
    const pane = document.getElementById('detail');
    try {
      const g = await Q.api('groups/' + open);
      const kept = g.responses.some((r) => r.text !== null);
      const images = g.images.map(picture);
      pane.replaceChildren(...[
        h('div', { class: 'top quiet' }, 'step ' + (g.step + 1) + ' · slot ' + g.slot + ' · row ' + g.row + ' · version ' + g.version + (g.worker ? ' · ' + g.worker : '') + ' ', chip(g.outcome)),
        g.note ? notice(g.note) : h('p', { class: 'question' }, plain(g.question)),
        images.length ? h('div', { class: 'images' }, ...images) : null,
        h('h3', null, 'Vote'), votes(g),
        h('h3', null, 'Responses'),
        kept ? null : h('p', { class: 'quiet' }, 'The texts of this step are no longer in the ledger; answers and rewards are.'),
        h('div', { class: 'scroll' }, h('table', null, h('thead', null, h('tr', null, ...['#', 'Answer', 'Reward', 'Tokens', 'Log-prob', 'Text'].map((t, i) => h('th', { class: i === 0 || (i > 1 && i < 5) ? 'n' : null }, t)))),
          h('tbody', null, ...g.responses.map(response)))),
        ...(g.visits.length > 1 ? [h('h3', null, 'This question under other versions'), h('div', { class: 'visits' }, ...g.visits.map(visit))] : [])].filter(Boolean));
      if (matchMedia('(max-width: 760px)').matches) pane.scrollIntoView({ behavior: 'smooth' });
    } catch (error) { pane.replaceChildren(h('p', { class: 'quiet' }, String(error.message || error))); }
  };

  let timer = null;
  document.getElementById('filters').addEventListener('input', () => { clearTimeout(timer); timer = setTimeout(Q.list, 200); });
  document.getElementById('filters').addEventListener('submit', (event) => { event.preventDefault(); Q.list(); });
}
