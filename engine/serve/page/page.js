// The page: text in, speech out while it is made, its mel and its words. No libraries, no build.

const $ = (id) => document.getElementById(id);
const RATE = 24000;
let player = null; // of the speech that is heard, or was last
let recorder = null;
let sample = null; // Blob to clone

// ---- asking the server ----------------------------------------------------------------------

async function ask(path, options = {}) {
  const key = $("key").value.trim();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) {
    $("access").hidden = false;
    $("access").open = true;
  }
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error?.message ?? `the server answered ${response.status}`);
}

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

const failed = (error) => error.name === "AbortError" || tell(error.message, true);

async function loadVoices(chosen = $("voice").value) {
  const { voices } = await (await ask("/v1/audio/voices")).json();
  $("voice").replaceChildren(...voices.map((v) => new Option(v.name, v.id)));
  if (voices.some((v) => v.id === chosen)) $("voice").value = chosen;
}

// Server-sent events of a POST, which EventSource cannot make.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}

function samplesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (v) => v / 32768);
}

// ---- speaking -------------------------------------------------------------------------------

class Player {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE });
    this.abort = new AbortController();
    this.chunks = [];
    this.length = 0; // samples so far
    this.start = null; // context time of the first sample
    this.spans = [];
    this.mel = new Mel($("mel"));
    $("words").replaceChildren();
  }

  add(samples) {
    this.chunks.push(samples);
    this.mel.add(samples);
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    const now = this.context.currentTime;
    this.start ??= now + 0.15; // a little ahead, so that a slow chunk is not heard
    const due = this.start + this.length / RATE;
    if (due < now) this.start += now - due; // late: everything after moves
    source.start(Math.max(due, now));
    this.length += samples.length;
  }

  addWords(words) {
    for (const word of words) {
      const span = document.createElement("span");
      span.textContent = word.word;
      span.className = "wait";
      this.spans.push({ span, ...word });
      $("words").append(span, " ");
    }
  }

  get at() { // seconds heard
    return this.start === null ? 0 : this.context.currentTime - this.start;
  }

  draw() {
    const at = this.at;
    for (const { span, start_s, end_s } of this.spans) {
      const now = start_s <= at && at < end_s;
      if (now && !span.classList.contains("now")) span.dataset.lit = at.toFixed(3);
      span.className = now ? "now" : at < start_s ? "wait" : "";
    }
    this.mel.draw(at);
    this.ended = this.complete && at > this.length / RATE;
    if (!this.ended && this.context.state !== "closed") requestAnimationFrame(() => this.draw());
    if (this.ended) $("stop").disabled = true;
  }

  stop() {
    this.abort.abort();
    if (this.context.state !== "closed") this.context.close();
    $("stop").disabled = true;
  }
}

async function speak() {
  player?.stop();
  const mine = player = new Player();
  $("stop").disabled = false;
  $("save").hidden = true;
  tell("…");
  const begin = performance.now();
  const response = await ask("/v1/audio/speech", {
    method: "POST", signal: mine.abort.signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      input: $("text").value, voice: $("voice").value, speed: Number($("speed").value),
      response_format: "pcm", stream_format: "sse", words: true,
    }),
  });
  for await (const event of events(response)) {
    if (event.type === "speech.audio.words") mine.addWords(event.words);
    if (event.type === "speech.audio.error") throw new Error(event.error.message);
    if (event.type !== "speech.audio.delta") continue;
    if (!mine.length) {
      tell(`first sound after ${Math.round(performance.now() - begin)} ms`);
      mine.add(samplesOf(event.audio));
      mine.draw();
    } else mine.add(samplesOf(event.audio));
  }
  mine.complete = true;
  const file = wav(mine.chunks, RATE);
  URL.revokeObjectURL($("save").href);
  $("save").href = URL.createObjectURL(file);
  $("save").hidden = false;
  const seconds = mine.length / RATE;
  const took = (performance.now() - begin) / 1000;
  tell(`${$("status").textContent}; ${seconds.toFixed(1)} s of speech in ${took.toFixed(1)} s`);
}

function wav(chunks, rate) {
  const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * length, true);
  let at = 44;
  for (const chunk of chunks)
    for (const v of chunk) {
      view.setInt16(at, Math.max(-1, Math.min(1, v)) * 32767, true);
      at += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}

// ---- the mel --------------------------------------------------------------------------------

// Log-mel of 1024 samples every 256, 100 bands to 12 kHz, as the engine's own; drawn as it comes.
class Mel {
  static N = 1024;
  static HOP = 256;
  static BANDS = 100;
  static WINDOW = Float32Array.from({ length: 1024 }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / 1024));
  static EDGES = (() => { // bins of the triangles' corners
    const mel = (hz) => hz < 1000 ? hz * 3 / 200 : 15 + 27 * Math.log(hz / 1000) / Math.log(6.4);
    const hz = (m) => m < 15 ? m * 200 / 3 : 1000 * Math.exp((m - 15) * Math.log(6.4) / 27);
    const top = mel(RATE / 2);
    return Array.from({ length: 102 }, (_, i) => hz(i * top / 101) * 1024 / RATE);
  })();

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.frames = [];
    this.tail = new Float32Array(0);
    this.columns = document.createElement("canvas");
    this.columns.width = 4096;
    this.columns.height = Mel.BANDS;
    this.context.clearRect(0, 0, canvas.width, canvas.height);
  }

  add(samples) {
    const all = new Float32Array(this.tail.length + samples.length);
    all.set(this.tail);
    all.set(samples, this.tail.length);
    let at = 0;
    for (; at + Mel.N <= all.length; at += Mel.HOP) this.paint(this.frame(all.subarray(at, at + Mel.N)));
    this.tail = all.slice(at);
  }

  frame(samples) {
    const power = spectrum(samples);
    return Array.from({ length: Mel.BANDS }, (_, b) => {
      const [low, mid, high] = Mel.EDGES.slice(b, b + 3);
      let sum = 0;
      for (let bin = Math.floor(low); bin <= Math.ceil(high) && bin < power.length; bin++) {
        const weight = Math.min((bin - low) / (mid - low), (high - bin) / (high - mid));
        if (weight > 0) sum += weight * Math.sqrt(power[bin]);
      }
      return Math.log(Math.max(1e-5, sum * 2 * Mel.N / RATE / (high - low)));
    });
  }

  paint(mel) {
    const x = this.frames.push(mel) - 1;
    if (x >= this.columns.width) { // a longer text: twice as wide
      const wider = document.createElement("canvas");
      wider.width = 2 * this.columns.width;
      wider.height = Mel.BANDS;
      wider.getContext("2d").drawImage(this.columns, 0, 0);
      this.columns = wider;
    }
    const context = this.columns.getContext("2d");
    mel.forEach((value, b) => {
      const v = Math.max(0, Math.min(1, (value + 8) / 9));
      context.fillStyle = `hsl(${260 - 220 * v} 85% ${6 + 62 * v}%)`;
      context.fillRect(x, Mel.BANDS - 1 - b, 1, 1);
    });
  }

  draw(at) {
    const { canvas, context } = this;
    const shown = 5 * RATE / Mel.HOP; // five seconds, or as much of it as there is
    const heard = at * RATE / Mel.HOP;
    const from = Math.max(0, Math.min(heard - shown * 0.7, this.frames.length - shown));
    const width = canvas.width;
    context.clearRect(0, 0, width, canvas.height);
    context.drawImage(this.columns, from, 0, shown, Mel.BANDS, 0, 0, width, canvas.height);
    context.fillStyle = "white";
    context.fillRect((heard - from) / shown * width, 0, 2, canvas.height);
  }
}

// Power of the first half of a 1024-point FFT, radix 2, in place.
function spectrum(samples) {
  const n = Mel.N, re = new Float32Array(n), im = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    let j = 0;
    for (let bit = 1, r = n >> 1; bit < n; bit <<= 1, r >>= 1) if (i & bit) j |= r;
    re[j] = samples[i] * Mel.WINDOW[i];
  }
  for (let size = 2; size <= n; size *= 2)
    for (let k = 0; k < size / 2; k++) {
      const angle = -2 * Math.PI * k / size, c = Math.cos(angle), s = Math.sin(angle);
      for (let i = k; i < n; i += size) {
        const j = i + size / 2, x = re[j] * c - im[j] * s, y = re[j] * s + im[j] * c;
        re[j] = re[i] - x; im[j] = im[i] - y;
        re[i] += x; im[i] += y;
      }
    }
  return re.subarray(0, n / 2).map((x, i) => x * x + im[i] * im[i]);
}

// ---- cloning --------------------------------------------------------------------------------

class Recorder {
  async start() {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("/page/recorder.js");
    const node = this.node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    this.chunks = [];
    node.port.onmessage = ({ data }) => {
      this.chunks.push(data);
      const peak = data.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      $("level-bar").style.width = `${Math.min(100, 130 * peak)}%`;
      const seconds = this.chunks.length * data.length / this.context.sampleRate;
      $("record").textContent = `Stop (${seconds.toFixed(1)} s)`;
      if (seconds > 59) stopRecording();
    };
    this.context.createMediaStreamSource(this.stream).connect(node);
  }

  stop() {
    this.node.port.onmessage = null; // what is under way would write over the button
    this.stream.getTracks().forEach((track) => track.stop());
    this.context.close();
    return wav(this.chunks, this.context.sampleRate);
  }
}

function useSample(blob) {
  sample = blob;
  $("make").disabled = !blob;
  $("recording").hidden = !blob;
  if (blob) $("recording").src = URL.createObjectURL(blob);
}

function stopRecording() {
  if (!recorder?.chunks) return;
  useSample(recorder.stop());
  recorder = null;
  $("record").textContent = "Record";
  $("level-bar").style.width = 0;
}

async function record() {
  if (recorder) return stopRecording();
  recorder = new Recorder();
  try {
    await recorder.start();
  } catch (error) {
    recorder = null;
    throw new Error(`no microphone: ${error.message}`);
  }
}

async function clone() {
  const form = new FormData();
  form.append("name", $("name").value);
  form.append("consent", document.querySelector(".consent").textContent.trim().replace(/\s+/g, " "));
  form.append("audio_sample", sample, "recording");
  tell("cloning…");
  const voice = await (await ask("/v1/audio/voices", { method: "POST", body: form })).json();
  await loadVoices(voice.id);
  const { seconds, snr_db } = voice.quality;
  tell(`cloned ${voice.name} from ${seconds.toFixed(1)} s of speech, SNR ${snr_db[0]} dB`);
}

async function forget() {
  const chosen = $("voice").selectedOptions[0];
  if (chosen.value === "default") throw new Error("the default voice cannot be deleted");
  if (!confirm(`Delete the voice ${chosen.text}?`)) return;
  await ask(`/v1/audio/voices/${encodeURIComponent(chosen.value)}`, { method: "DELETE" });
  await loadVoices("default");
  tell(`deleted ${chosen.text}`);
}

// ---- events ---------------------------------------------------------------------------------

const run = (work) => (event) => { event.preventDefault(); work().catch(failed); };
$("speak").addEventListener("submit", run(speak));
$("clone").addEventListener("submit", run(clone));
$("record").addEventListener("click", run(async () => record()));
$("forget").addEventListener("click", run(forget));
$("stop").addEventListener("click", () => player?.stop());
$("speed").addEventListener("input", () => { $("speed-value").value = Number($("speed").value).toFixed(1); });
$("file").addEventListener("change", () => useSample($("file").files[0] ?? null));
$("key").addEventListener("change", () => loadVoices().then(() => tell("")).catch(failed));
loadVoices("default").catch(failed);
