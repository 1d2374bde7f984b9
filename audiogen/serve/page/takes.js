// A list of sounds. props.value: the cards of takes.py, oldest first. What a card has already stays as it is when news
// come, so that a sound plays on.
const box = element.querySelector(".takes");

const KINDS = ["wav", "flac", "mp3", "ogg"];
const WORDS = {
  reuse: "Same settings", init: "Change", inpaint: "Part anew", prolong: "Continue", choose: "This one", drop: "Remove",
};

function create(tag, kind, text) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text) node.textContent = text;
  return node;
}

function build(card) {
  const node = create("article", "take");
  node.dataset.key = card.key;
  node.append(create("h3"), create("p", "facts"), create("progress"), create("p", "note"), create("nav"));
  return node;
}

function addAudio(node, card) {
  const audio = create("audio");
  audio.controls = true;
  const finish = () => { audio.src = `${card.url}.wav`; };
  if (card.over) {
    audio.preload = "metadata";
    finish();
  } else {
    audio.autoplay = ![...document.querySelectorAll("audio")].some((other) => !other.paused);
    audio.addEventListener("ended", finish, { once: true });
    audio.addEventListener("error", finish, { once: true });
    playLive(audio, `${card.url}.mp3`, card.seconds);
  }
  node.insertBefore(audio, node.querySelector("nav"));
}

// A sound that is still being made: a player that waits for the end of what a server sends would be late.
function playLive(audio, url, seconds) {
  if (!window.MediaSource || !MediaSource.isTypeSupported("audio/mpeg")) {
    audio.src = url;
    return;
  }
  const media = new MediaSource();
  audio.src = URL.createObjectURL(media);
  media.addEventListener("sourceopen", async () => {
    URL.revokeObjectURL(audio.src);
    const buffer = media.addSourceBuffer("audio/mpeg");
    media.duration = seconds;
    const reader = (await fetch(url)).body.getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      if (media.readyState !== "open") return reader.cancel();
      buffer.appendBuffer(piece.value);
      await new Promise((resolve) => buffer.addEventListener("updateend", resolve, { once: true }));
    }
    if (media.readyState === "open") media.endOfStream();
  }, { once: true });
}

function addPicture(node, card) {
  const frame = create("div", "picture");
  const image = create("img");
  image.alt = `Waveform and spectrogram of ${card.title}`;
  image.src = `${card.url}.png`;
  image.draggable = false;
  const head = create("i", "head"), span = create("i", "span");
  frame.append(image, span, head);
  node.insertBefore(frame, node.querySelector("audio"));
  const audio = node.querySelector("audio");
  const follow = () => {
    head.style.left = `${(100 * audio.currentTime) / (audio.duration || 1)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  for (const name of ["play", "seeked"]) audio.addEventListener(name, follow);
  const share = (event) => {
    const area = frame.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
  };
  let from = null;
  frame.addEventListener("pointerdown", (event) => { from = share(event); frame.setPointerCapture(event.pointerId); });
  frame.addEventListener("pointermove", (event) => {
    if (from !== null && card.spans) mark(frame, [from, share(event)]);
  });
  frame.addEventListener("pointerup", (event) => {
    const to = share(event), ends = [from, to].sort((a, b) => a - b);
    from = null;
    if (card.spans && ends[1] - ends[0] > 0.005) trigger("click", { action: "span", ends, key: card.key });
    else audio.currentTime = to * audio.duration;
  });
}

function mark(frame, ends) {
  const [low, high] = [...ends].sort((a, b) => a - b);
  frame.querySelector(".span").style.cssText = `left: ${100 * low}%; width: ${100 * (high - low)}%`;
}

function addLinks(node, card) {
  const links = create("span", "links");
  for (const kind of card.blind ? [] : KINDS) {
    const link = create("a", "", kind);
    link.href = `${card.url}.${kind}`;
    link.download = `${card.name}.${kind}`;
    links.append(link);
  }
  node.querySelector("nav").append(links);
}

function addButtons(node, card) {
  for (const action of card.actions || []) {
    const button = create("button", action, WORDS[action]);
    button.type = "button";
    button.addEventListener("click", () => {
      if (action === "drop") forget(node);
      trigger("click", { action, key: card.key });
    });
    node.querySelector("nav").append(button);
  }
}

// What is still being fetched of a removed sound would not be found.
function forget(node) {
  const audio = node.querySelector("audio");
  audio?.removeAttribute("src");
  audio?.load();
  node.querySelector("img")?.removeAttribute("src");
}

function update(node, card) {
  node.querySelector("h3").textContent = card.title;
  node.querySelector(".facts").textContent = card.facts;
  const bar = node.querySelector("progress");
  bar.hidden = card.over;
  if (card.state === "runs") bar.value = card.progress;
  else bar.removeAttribute("value");
  const percent = Math.round(100 * card.progress);
  node.querySelector(".note").textContent = card.error || (card.over ? "" : card.state === "runs" ? `${percent} %` : card.state);
  if (card.plays && !node.querySelector("audio")) addAudio(node, card);
  if (card.over && card.plays && !node.querySelector(".picture")) {
    addPicture(node, card);
    addLinks(node, card);
  }
  const wanted = (card.over ? card.actions || [] : []).join();
  if (node.dataset.actions !== wanted) {
    node.dataset.actions = wanted;
    node.querySelectorAll("button").forEach((button) => button.remove());
    if (card.over) addButtons(node, card);
  }
  if (card.span && node.querySelector(".picture")) mark(node.querySelector(".picture"), card.span);
  node.classList.toggle("chosen", Boolean(card.chosen));
}

function show() {
  const cards = props.value || [], keys = new Set(cards.map((card) => card.key));
  for (const node of [...box.children]) if (!keys.has(node.dataset.key)) node.remove();
  let added = null;
  for (const card of cards) {
    let node = [...box.children].find((each) => each.dataset.key === card.key);
    if (!node) {
      node = build(card);
      if (card.beside) box.append(node);
      else box.prepend(node);
      added = node;
    }
    update(node, card);
  }
  if (added) added.scrollIntoView({ block: "nearest", behavior: "smooth" });  // on a phone it is far below
}

show();
watch("value", show);
