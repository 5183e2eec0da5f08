// What the pages do by themselves: drafts of Locations rows, which no server knows of before Save, and whether live figures are live.
// Everything else is htmx. Texts are set as text, never as markup.
"use strict";
(() => {
  const id = (name) => document.getElementById(name);
  const read = (row) => JSON.parse(row.querySelector("[name=row]").value);
  const saved = (row) => JSON.parse(row.dataset.saved);
  const WORDS = { "kept": "", "draft-add": "will be added", "draft-change": "will be changed", "draft-delete": "will be deleted" };
  let edited = null; // the row that the editor is open for; null = a new one
  let doomed = null; // the row that Confirm is open for

  // ===== rows

  function rows() {
    const table = id("locations-table");
    return table ? [...table.tBodies[0].rows] : [];
  }

  function write(row, draft) {
    row.querySelector("[name=row]").value = JSON.stringify(draft);
    row.dataset.state = draft.state;
    const zones = Number(row.dataset.zones) > 1 ? draft.zones.join(", ") || "automatic" : "none";
    const subnet = /\/virtualNetworks\/([^/]+)\/subnets\/([^/]+)$/i.exec(draft.subnet);
    const shown = { units: draft.units, zones, subnet: subnet ? `${subnet[1]} / ${subnet[2]}` : draft.subnet };
    for (const [name, text] of Object.entries(shown)) row.querySelector(`.shown-${name}`).textContent = text;
    row.querySelector(".shown-subnet").title = draft.subnet;
    row.querySelector(".shown-disabled").hidden = !draft.disableGateway;
    row.querySelector(".draft-word").textContent = WORDS[draft.state];
    changed();
  }

  function add(draft, name, zones) {
    const row = id("blank-row").content.querySelector("tr").cloneNode(true);
    row.dataset.zones = zones;
    row.querySelector(".shown-name").textContent = name;
    row.querySelector("summary").setAttribute("aria-label", `Actions for ${name}`);
    id("locations-table").tBodies[0].append(row);
    write(row, draft);
  }

  // A draft that is what is saved is none.
  function settle(row, draft) {
    if (draft.state !== "draft-add") {
      const same = JSON.stringify({ ...draft, state: "" }) === JSON.stringify({ ...saved(row), state: "" });
      draft.state = same ? saved(row).state : "draft-change";
    }
    write(row, draft);
  }

  function differs(row) {
    return JSON.stringify(read(row)) !== JSON.stringify(saved(row));
  }

  function undo(row) {
    if (row.dataset.state === "draft-add") row.remove();
    else write(row, saved(row));
    changed();
  }

  function drafts() {
    const settings = [id("tier"), id("network-mode")].filter((field) => field && field.value !== field.dataset.saved);
    return rows().filter(differs).length + settings.length;
  }

  // What was planned before is not what would be saved now.
  function changed() {
    const count = drafts();
    if (id("draft-count")) id("draft-count").textContent = count === 0 ? "No changes" : count === 1 ? "1 change" : `${count} changes`;
    const discard = document.querySelector("[data-action=discard]");
    if (discard) discard.hidden = count === 0;
    if (document.querySelector("#deployment .plan, #deployment .problem")) id("deployment").replaceChildren();
  }

  function discard() {
    for (const row of rows()) if (differs(row)) undo(row);
    for (const field of [id("tier"), id("network-mode")]) field.value = field.dataset.saved;
    changed();
  }

  // ===== the editor

  function tier() {
    return id("tier").selectedOptions[0];
  }

  function openEditor(row) {
    edited = row;
    const draft = row ? read(row) : { units: 1, zones: [], disableGateway: false, subnet: "", publicIp: "" };
    const used = new Set(rows().map((each) => read(each).name.replace(/\s+/g, "").toLowerCase()));
    for (const option of id("editor-location").options) option.hidden = option.disabled = option.value !== "" && used.has(option.value);
    id("editor-title").textContent = row ? `Edit ${row.querySelector(".shown-name").textContent}` : "Add region";
    id("editor-apply").textContent = row ? "Apply" : "Add";
    id("editor-choice").hidden = Boolean(row);
    id("editor-disable").hidden = !row;
    id("editor-location").required = !row;
    id("editor-location").value = "";
    id("editor-units").max = Math.max(1, Number(tier().dataset.max));
    id("editor-units").value = draft.units;
    id("editor-subnet").value = draft.subnet;
    id("editor-public-ip").value = draft.publicIp;
    id("editor-disabled").checked = draft.disableGateway;
    for (const box of zoneBoxes()) box.checked = draft.zones.includes(box.value);
    document.querySelector(`[name=zoning][value=${draft.zones.length ? "chosen" : "automatic"}]`).checked = true;
    fit();
    id("editor").showModal();
  }

  function zoneBoxes() {
    return [...document.querySelectorAll("#editor [name=zone]")];
  }

  function zonesAvailable() {
    if (edited) return Number(edited.dataset.zones);
    const option = id("editor-location").selectedOptions[0];
    return Number((option && option.dataset.zones) || 1);
  }

  function zones() {
    if (id("editor-zones").hidden || !document.querySelector("[name=zoning][value=chosen]").checked) return [];
    return zoneBoxes().filter((box) => box.checked && !box.closest("label").hidden).map((box) => box.value);
  }

  // Shows what applies to the location, the tier and the network mode that are chosen.
  function fit() {
    const available = zonesAvailable();
    id("editor-zones").hidden = available < 2 || !("zoned" in tier().dataset);
    id("editor-network").hidden = id("network-mode").value === "None";
    const choosing = document.querySelector("[name=zoning][value=chosen]").checked;
    for (const box of zoneBoxes()) {
      box.closest("label").hidden = Number(box.value) > available;
      box.disabled = !choosing;
    }
    id("editor-units-shown").value = id("editor-units").value;
    id("editor-error").textContent = "";
  }

  function wrong(draft) {
    const choosing = !id("editor-zones").hidden && document.querySelector("[name=zoning][value=chosen]").checked;
    if (choosing && draft.zones.length === 0) return "Choose at least one zone, or Automatic.";
    if (draft.zones.length && draft.units % draft.zones.length) {
      return `${draft.units} units cannot be spread evenly over ${draft.zones.length} zones.`;
    }
    if (!id("editor-network").hidden && !draft.subnet) return "A location in a virtual network needs a subnet.";
    return "";
  }

  function apply(event) {
    const before = edited ? read(edited) : { name: id("editor-location").value, state: "draft-add", carried: {} };
    const networked = !id("editor-network").hidden;
    const draft = {
      name: before.name, state: before.state, units: Number(id("editor-units").value), zones: zones(),
      disableGateway: Boolean(edited) && id("editor-disabled").checked,
      subnet: networked ? id("editor-subnet").value.trim() : "", publicIp: networked ? id("editor-public-ip").value.trim() : "",
      carried: before.carried,
    };
    const problem = wrong(draft);
    if (problem) {
      event.preventDefault();
      id("editor-error").textContent = problem;
      return;
    }
    if (edited) settle(edited, draft);
    else add(draft, id("editor-location").selectedOptions[0].textContent, zonesAvailable());
  }

  // ===== deleting

  function ask(row) {
    doomed = row;
    id("confirm-name").textContent = row.querySelector(".shown-name").textContent;
    id("confirm").showModal();
  }

  function confirmed() {
    if (doomed.dataset.state === "draft-add") undo(doomed);
    else write(doomed, { ...saved(doomed), state: "draft-delete" });
    focusNear(doomed);
  }

  function focusNear(row) {
    const place = row.isConnected ? row.querySelector("summary") : document.querySelector("[data-action=add]");
    if (place) place.focus();
  }

  // ===== wiring

  const ACTIONS = {
    "add": () => openEditor(null),
    "edit": (row) => openEditor(row),
    "delete": (row) => ask(row),
    "undo": (row) => { undo(row); focusNear(row); },
    "discard": () => discard(),
    "dismiss": () => { id("deployment").replaceChildren(); document.querySelector("#locations-form .primary").focus(); },
    "close": (row, button) => button.closest("dialog").close(),
  };

  function closeMenus(except) {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    const menu = event.target.closest("details.menu");
    closeMenus(button ? null : menu);
    if (button && ACTIONS[button.dataset.action]) ACTIONS[button.dataset.action](button.closest("tr"), button);
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest && event.target.closest("details.menu[open]");
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  document.addEventListener("focusin", (event) => closeMenus(event.target.closest("details.menu")));
  document.addEventListener("input", (event) => { if (event.target.closest("#editor")) fit(); });
  document.addEventListener("change", (event) => { if (event.target.matches("#tier, #network-mode")) changed(); });
  document.addEventListener("submit", (event) => {
    if (event.target.closest("#editor")) apply(event);
    if (event.target.closest("#confirm") && event.submitter && event.submitter.value === "confirm") confirmed();
  });
  // What is being deployed is not edited; the table comes anew when that has ended.
  document.addEventListener("htmx:afterSwap", () => {
    if (id("locations-form")) id("locations-form").inert = Boolean(document.querySelector("#deployment [sse-connect]"));
  });
  let saving = false;
  document.addEventListener("htmx:afterRequest", (event) => { saving = Boolean(document.querySelector("#deployment .progress")); });
  window.addEventListener("beforeunload", (event) => { if (drafts() && !saving) event.preventDefault(); });

  // ===== live or not

  document.addEventListener("htmx:sendError", () => { id("offline").hidden = false; });
  document.addEventListener("htmx:beforeOnLoad", () => { id("offline").hidden = true; });

  function live(state) {
    const line = document.querySelector("[data-live]");
    if (!line || (state === "lost" && line.dataset.live === "lost")) return;
    line.dataset.live = state;
    const now = new Date().toISOString().slice(11, 19);
    line.querySelector(".live-word").textContent = state === "open" ? "Live" : `No connection since ${now} UTC: the figures are from before`;
  }

  document.addEventListener("htmx:sseOpen", () => live("open"));
  document.addEventListener("htmx:sseError", () => live("lost"));
})();
