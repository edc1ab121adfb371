// Start: show the page, then read the data and load the models; or say what is wrong with them.

"use strict";

/** Settled when the browser has painted (a hidden page never does). */
const painted = () => new Promise((resolve) => {
  requestAnimationFrame(() => setTimeout(resolve));
  setTimeout(resolve, 300);
});

async function begin() {
  await painted();
  performance.mark("decode");
  const data = JSON.parse(document.getElementById("data").textContent);
  const toy = engine.load(data);
  view.begin(toy, data);
  answer.build();
  choosing.build();
  training.build();
  tour.build();
  document.getElementById("message").textContent = "";
  document.getElementById("app").hidden = false;

  const arrive = () => {
    Object.assign(view.state, view.read_address(location.hash));
    if (view.state.tour && !location.hash.includes("prompt=")) tour.go(view.state.tour);  // #tour=4
    else view.render();
  };
  window.addEventListener("hashchange", arrive);
  arrive();
  return toy;
}

const ready = begin();
ready.catch((error) => {
  const message = document.getElementById("message");
  message.className = "error";
  message.textContent = `This page cannot start: ${error.message}`;
});

// For scripts. answer: the objects that `python decode.py --json PROMPT` prints, in one array.
window.fusionroute = {
  answer: async (prompt, { method = "fusionroute" } = {}) => {
    const toy = await ready, decoding = engine.start(toy, prompt, method);
    while (!decoding.done) decoding.step();
    return engine.records(toy.encoding, decoding, prompt, method);
  },
  engine, theory, ready,
  finished: () => ready.then(() => answer.finished, () => {}),  // the answer is complete
};
