// Start: read the data, load the models, show the page; or say what is wrong with them.

"use strict";

try {
  const data = JSON.parse(document.getElementById("data").textContent);
  const toy = engine.load(data);
  view.begin(toy, data);
  choosing.build();
  training.build();
  tour.build();
  document.getElementById("app").hidden = false;

  const arrive = () => {
    Object.assign(view.state, view.read_address(location.hash));
    if (view.state.tour && !location.hash.includes("prompt=")) tour.go(view.state.tour);  // #tour=4
    else view.render();
  };
  window.addEventListener("hashchange", arrive);
  arrive();

  // For scripts. answer: the objects that `python decode.py --json PROMPT` prints, in one array.
  window.fusionroute = {
    answer: async (prompt, { method = "fusionroute" } = {}) => {
      const decoding = engine.start(toy, prompt, method);
      while (!decoding.done) decoding.step();
      return engine.records(toy.encoding, decoding, prompt, method);
    },
    engine, theory, toy,
    finished: () => view.finished,  // a promise: the answer on the page is complete
  };
} catch (error) {
  const message = document.getElementById("message");
  message.className = "error";
  message.textContent = `This page cannot start: ${error.message}`;
}
