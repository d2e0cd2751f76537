// Drain, pause, resume, and force a breaker: asked for in words, with the token, which is kept in memory only.

import {html, useEffect, useRef, useState} from "./vendor/htm-preact.js";

let token = "";

export function ActionButton({act, path, what, danger, children}) {
  return html`<button class=${danger ? "action danger" : "action"} onClick=${() => act({path, what, title: children})}>${children}</button>`;
}

/** Ask for confirmation and the token, send the request, and show what the server answers. */
export function Confirm({action, onClose}) {
  const dialog = useRef(null);
  const [answer, setAnswer] = useState(null);
  const [sending, setSending] = useState(false);
  useEffect(() => {
    dialog.current.showModal();
  }, [action]);

  async function submit(event) {
    event.preventDefault();
    token = new FormData(event.currentTarget).get("token");
    setSending(true);
    setAnswer(await request(action.path));
    setSending(false);
  }

  const done = answer !== null && answer.ok;
  return html`<dialog ref=${dialog} aria-labelledby="confirm-title" onClose=${onClose}>
    <form onSubmit=${submit}>
      <h2 id="confirm-title">${action.title}</h2>
      <p>${action.what}</p>
      ${!done && html`<label>Token of the control plane
        <input type="password" name="token" autocomplete="off" required minlength="16" defaultValue=${token} /></label>
        <p class="quiet">This page keeps the token only until it is closed.</p>`}
      <p role="status" class=${answer === null ? "" : done ? "ok" : "bad"}>${answer === null ? "" : answer.text}</p>
      <div class="buttons">
        ${!done && html`<button type="submit" class="action danger" disabled=${sending}>${sending ? "Sending …" : action.title}</button>`}
        <button type="button" class="action" onClick=${() => dialog.current.close()}>${done ? "Close" : "Cancel"}</button>
      </div>
    </form></dialog>`;
}

async function request(path) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: {"Authorization": `Bearer ${token}`, "Content-Type": "application/json"},
      body: "{}",
      credentials: "omit",
    });
    const text = await response.text();
    if (response.status === 401) token = "";
    return {ok: response.ok, text: `${response.ok ? "Done" : `Not done (${response.status})`}: ${words(text)}`};
  } catch {
    return {ok: false, text: "Not known whether it was done: the control plane did not answer."};
  }
}

function words(body) {
  try {
    const parsed = JSON.parse(body);
    return String(parsed.error ?? parsed.result ?? parsed.text ?? body);
  } catch {
    return body;
  }
}
