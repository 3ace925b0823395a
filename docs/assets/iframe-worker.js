/* A worker in a hidden frame, for pages read from a file: browsers start no real worker there. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<body><script src="${url}"></script></body>`;
      this.frame.addEventListener("load", () => this.start());
      document.body.append(this.frame);
    }
    start() {
      const inside = this.frame.contentWindow;
      inside.postMessage = data => this.answer(data);
      inside.importScripts = (...urls) => Promise.all(urls.map(url => this.load(inside, url)));
      for (const data of this.waiting.splice(0)) this.tell(inside, data);
      this.running = inside;
    }
    load(inside, url) {
      return new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        Object.assign(script, {src: url, onload: done, onerror: failed});
        inside.document.body.append(script);
      });
    }
    answer(data) {
      const event = new MessageEvent("message", {data});
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
    tell(inside, data) {
      inside.dispatchEvent(new inside.MessageEvent("message", {data}));
    }
    postMessage(data) {
      if (this.running) this.tell(this.running, data);
      else this.waiting.push(data);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
