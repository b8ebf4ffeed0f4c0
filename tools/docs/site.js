// Menu, dark or light, search, copy, the section one is in. No framework, no request but for search.js, which lies beside this file.
const up = document.body.dataset.up, $ = id => document.getElementById(id)

$("menu").onclick = () => { $("menu").setAttribute("aria-expanded", document.body.classList.toggle("menu")); $("sidebar").scrollTop = 0 }

$("theme").onclick = () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark"
  try { localStorage.setItem("theme", document.documentElement.dataset.theme) } catch (e) { /* a page from disk may have no store */ }
}

// search: a script tag instead of a fetch, so that it works from a disk too
const query = $("query"), hits = $("hits")
let loading
const load = () => loading ??= new Promise((done, failed) => {
  const s = document.createElement("script"); s.src = up + "search.js"; s.onload = () => done(window.SEARCH); s.onerror = failed; document.head.append(s)
})
const safe = s => s.replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c])
// accents are folded, and a word stands for its other spelling and for what the field also calls it
const fold = s => s.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase()
const SYNONYMS = [["millimeters", "millimetres", "mm"], ["millimeter", "millimetre"], ["meter", "metre"], ["color", "colour"], ["colors", "colours"],
  ["center", "centre"], ["gray", "grey"], ["normalize", "normalise"], ["optimize", "optimise"], ["license", "licence"], ["citation", "cite"], ["faq", "questions"], ["gpu", "cuda"],
  ["synthesis", "rendering", "render", "novel"], ["finetuning", "fine-tuning"], ["picture", "image"], ["pictures", "images"], ["video", "film"],
  ["calibrate", "calibration"], ["splats", "gaussians"], ["splatting", "rasterizer", "gaussians"], ["lens", "distortion"]]
const meanings = word => [word, ...SYNONYMS.filter(group => group.includes(word)).flat().filter(other => other !== word)]
const points = (w, title, heading, text) =>
  (heading === w ? 60 : heading.startsWith(w) ? 30 : heading.includes(w) ? 18 : 0)
  + (title === w ? (heading ? 8 : 70) : title.includes(w) ? 6 : 0) + (text.includes(w) ? 4 : 0)
const score = (entry, words) => {
  const [, title, , heading, text] = entry.map(fold)
  let sum = 0
  for (const word of words) {
    const [own, ...others] = meanings(word).map(w => points(w, title, heading, text))
    const s = own || Math.max(0, ...others)/2
    if (!s) return 0
    sum += s
  }
  return sum
}
const snippet = (text, words) => {
  const at = Math.max(0, Math.min(...words.map(w => { const i = text.toLowerCase().indexOf(w); return i < 0 ? 1e9 : i })))
  const from = at > 1e8 ? 0 : Math.max(0, at - 50), part = safe((from ? "… " : "") + text.slice(from, from + 150))
  return part.replace(new RegExp(words.map(w => safe(w).replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gi"), "<mark>$&</mark>")
}
async function search() {
  const words = fold(query.value).split(/\s+/).filter(Boolean)
  if (!words.length) { hits.hidden = true; return }
  const found = (await load()).map(e => [score(e, words), e]).filter(x => x[0]).sort((a, b) => b[0] - a[0]).slice(0, 14)
  hits.innerHTML = found.map(([, [page, title, anchor, heading, text]]) =>
    `<li><a href="${up}${page}${anchor ? "#" + anchor : ""}"><b>${safe(heading || title)}</b>${heading ? ` <small>${safe(title)}</small>` : ""}<p>${snippet(text, words)}</p></a></li>`).join("") || '<li class="none">nothing found</li>'
  hits.hidden = false
}
query.onfocus = load
query.oninput = search
query.onkeydown = e => {
  const all = [...hits.querySelectorAll("a")], i = all.findIndex(a => a.classList.contains("on"))
  if (e.key === "Escape") { query.value = ""; hits.hidden = true; query.blur() }
  if (e.key === "Enter" && all.length) location.href = all[Math.max(i, 0)].href
  if (e.key !== "ArrowDown" && e.key !== "ArrowUp" || !all.length) return
  e.preventDefault()
  all[i]?.classList.remove("on")
  const next = all[(i + (e.key === "ArrowDown" ? 1 : -1) + all.length) % all.length]
  next.classList.add("on"); next.scrollIntoView({block: "nearest"})
}
document.addEventListener("click", e => { if (!e.target.closest(".find")) hits.hidden = true; if (e.target.closest("#hits a, #sidebar a")) { hits.hidden = true; document.body.classList.remove("menu") } })
document.addEventListener("keydown", e => { if (e.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); query.focus() } })

for (const block of document.querySelectorAll("main div.sourceCode")) {
  const b = document.createElement("button"); b.className = "copy"; b.textContent = "copy"
  b.onclick = async () => { try { await navigator.clipboard.writeText(block.querySelector("code").innerText); b.textContent = "copied" } catch (e) { b.textContent = "not allowed" } setTimeout(() => b.textContent = "copy", 1500) }
  block.append(b)
}

const here = $("sidebar").querySelector("[aria-current]")                        // by hand: scrollIntoView would move the page too
if (here && here.offsetTop > $("sidebar").clientHeight - 80) $("sidebar").scrollTop = here.offsetTop - $("sidebar").clientHeight/2
const marks = new Map([...document.querySelectorAll(".toc a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]))
const seen = new IntersectionObserver(entries => {
  const top = entries.filter(e => e.isIntersecting)[0]
  if (!top) return
  marks.forEach(a => a.classList.remove("on"))
  const a = marks.get(top.target.id); a.classList.add("on")
  const box = a.closest(".toc"), y = a.offsetTop - box.offsetTop
  if (y < box.scrollTop || y > box.scrollTop + box.clientHeight - 40) box.scrollTop = y - box.clientHeight/2
}, {rootMargin: "-60px 0px -75% 0px"})
marks.forEach((_, id) => { const h = $(id); if (h) seen.observe(h) })

// what a widget draws is what the figure before it shows
for (const w of document.querySelectorAll(".widget")) {
  let figure = w.previousElementSibling
  while (figure && !figure.querySelector("img")) figure = figure.previousElementSibling
  const alt = (figure?.querySelector("img").alt ?? document.title) + " Chosen in the widget."
  new MutationObserver(() => w.querySelectorAll("img:not([alt]), img[alt='']").forEach(i => i.alt = alt)).observe(w, {childList: true, subtree: true})
}
