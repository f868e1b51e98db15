// Keeps what was typed into a form while a login ends in the middle of it: in this tab, until the
// next page that is not the login page. Secrets are never kept.
(() => {
  "use strict";
  const STORE = "tiergate-draft";
  const LOGIN = "/admin/login";
  if (location.pathname === LOGIN) return;
  const name = document.querySelector(".who strong");
  const me = name ? name.textContent : "";
  const forms = [...document.querySelectorAll("main form[method=post]")];
  const fields = (form) => [...form.elements].filter((one) => one.name && !["password", "submit", "file"].includes(one.type));
  const states = (form) => fields(form).map((one) => [one.name, one.value, one.checked === true]);

  function kept() {
    const text = sessionStorage.getItem(STORE);
    sessionStorage.removeItem(STORE);
    return text ? JSON.parse(text) : null;
  }

  function fill(form, values) {
    fields(form).forEach((one, i) => {
      if (!values[i] || values[i][0] !== one.name) return;
      if (one.type === "checkbox" || one.type === "radio") one.checked = values[i][2];
      else one.value = values[i][1];
    });
  }

  const draft = kept();
  const from = document.referrer ? new URL(document.referrer) : null;
  const isBack = !from || from.origin !== location.origin || from.pathname === LOGIN;
  if (draft && isBack && draft.me === me && draft.path === location.pathname && forms[draft.at]) {
    fill(forms[draft.at], draft.values);
    const note = document.createElement("div");
    const text = document.createElement("p");
    note.className = "note info";
    note.setAttribute("role", "status");
    text.textContent = "What you had typed is here again. It is not saved yet; secrets have to be typed anew.";
    note.append(text);
    document.getElementById("main").prepend(note);
  }

  for (const [at, form] of forms.entries()) {
    const keep = () => sessionStorage.setItem(
      STORE, JSON.stringify({ me, at, path: location.pathname, values: states(form) }));
    form.addEventListener("input", keep);
    form.addEventListener("submit", keep);
  }
  document.addEventListener("submit", (event) => {
    if (event.target.action.endsWith("/admin/logout")) sessionStorage.removeItem(STORE);
  });
})();
