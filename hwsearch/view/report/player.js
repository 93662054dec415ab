// Players of one mixture. All clips run at once on the clock of one audio context; one of them is heard.

const FADE_SECONDS = 0.01;

const player = {
  context: null,
  buffers: [],
  gains: [],
  sources: [],
  selected: 0,
  offset: 0,
  startedAt: null,

  get playing() {
    return this.startedAt !== null;
  },

  get duration() {
    return page.sound.seconds;
  },

  /** The position in the clips in seconds, the same in all. */
  position() {
    const passed = this.playing ? this.context.currentTime - this.startedAt : 0;
    return Math.min(this.offset + passed, this.duration);
  },

  /** Decode the clips, the first time. A browser wants a click before sound may play. */
  async prepare() {
    if (this.context !== null) return;
    this.context = new AudioContext();
    this.gains = page.sound.clips.map(() => {
      const gain = this.context.createGain();
      gain.connect(this.context.destination);
      return gain;
    });
    this.buffers = await Promise.all(page.sound.clips.map(({ sound }) => this.context.decodeAudioData(bytesOf(sound))));
  },

  async play() {
    await this.prepare();
    await this.context.resume();
    if (this.playing || this.buffers.length === 0) return; // a second press may come while the first one waits
    if (this.offset >= this.duration) this.offset = 0;
    const start = this.context.currentTime;
    this.sources = this.buffers.map((buffer, place) => {
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.gains[place]);
      this.gains[place].gain.value = place === this.selected ? 1 : 0;
      source.start(start, this.offset);
      return source;
    });
    this.startedAt = start;
    showPlayer();
  },

  pause() {
    this.offset = this.position();
    this.startedAt = null;
    this.sources.forEach((source) => source.stop());
    this.sources = [];
    showPlayer();
  },

  seek(seconds) {
    const before = this.playing;
    if (before) this.pause();
    this.offset = Math.min(Math.max(seconds, 0), this.duration);
    showPlayer();
    return before ? this.play() : Promise.resolve();
  },

  /** Hear another clip from the same position on. */
  select(place) {
    this.selected = place;
    this.gains.forEach(({ gain }, other) => {
      gain.setTargetAtTime(other === place ? 1 : 0, this.context.currentTime, FADE_SECONDS / 3);
    });
    showPlayer();
  },
};

/** The bytes of a data URI, for which a page opened from a file may make no request. */
function bytesOf(uri) {
  return Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (letter) => letter.charCodeAt(0)).buffer;
}

function showPlayer() {
  const position = player.position();
  document.getElementById("play").textContent = player.playing ? "pause" : "play";
  const slider = document.getElementById("position");
  slider.value = String(position);
  slider.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${player.duration.toFixed(1)} seconds`);
  document.getElementById("time").textContent = `${position.toFixed(1)} s`;
  document.getElementById("clips").style.setProperty("--played", `${(100 * position) / player.duration}%`);
  document.querySelectorAll("#clips input").forEach((radio, place) => (radio.checked = place === player.selected));
}

function followPlayer() {
  if (player.playing) {
    if (player.position() >= player.duration) player.pause();
    showPlayer();
  }
  requestAnimationFrame(followPlayer);
}

function clipElement({ name, note, image, alt }, place) {
  const radio = make("input", { type: "radio", name: "clip", value: String(place) });
  radio.onchange = () => player.select(place);
  const picture = make("span", { class: "spectrogram" }, make("img", { src: image, alt }));
  return make(
    "label",
    { class: "clip" },
    make("span", { class: "clip-name" }, radio, ` ${name}`),
    make("span", { class: "note" }, note),
    picture,
  );
}

function playerKeys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own
  const place = Number(event.key) - 1;
  if (Number.isInteger(place) && place >= 0 && place < page.sound.clips.length) player.select(place);
  else if (event.key === " " && event.target.id !== "play") player.playing ? player.pause() : player.play();
  else return;
  event.preventDefault();
}

function startPlayer() {
  const section = document.getElementById("listen-section");
  section.hidden = page.sound === null;
  if (page.sound === null) return;
  fill("listen-about", page.sound.about);
  fill("clips", ...page.sound.clips.map(clipElement));
  const slider = document.getElementById("position");
  slider.max = String(page.sound.seconds);
  slider.oninput = () => player.seek(Number(slider.value));
  document.getElementById("play").onclick = () => (player.playing ? player.pause() : player.play());
  section.addEventListener("keydown", playerKeys);
  showPlayer();
  requestAnimationFrame(followPlayer);
}
