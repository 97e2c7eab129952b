"""The page on which a judge compares texts: one file that needs no server; `{{name}}` and `{{rows}}` are filled in."""

TEMPLATE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{name}}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
section { border-top: 1px solid #e6e6e6; padding: 1em 0 }
h2 { font-size: 13px; font-weight: normal; color: #767676; margin: 0 }
p { white-space: pre-wrap; overflow-wrap: anywhere }
.prompt { color: #555 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5em }
.pair p { background: #f6f8fb; padding: 1em; margin: 0; border-radius: 6px }
.choice { display: flex; flex-wrap: wrap; gap: 2em; margin-top: 1em }
.comment { flex: 1; min-width: 12em; border: 0; border-bottom: 1px solid #ccc; font: inherit }
.done h2::after { content: " ✓"; color: #2a9d6f }
footer { position: sticky; bottom: 0; background: white; padding: 1em 0; border-top: 2px solid #3b6fb6 }
footer { display: flex; gap: 1em }
button, footer input { font: inherit; padding: .3em 1em }
</style>
<h1>Which text is better?</h1>
<p>Read both texts and choose the one that answers the line above them better. Your choices stay in this browser until you
save them as a file, which you then send back.</p>
{{rows}}
<footer><input id="judge" placeholder="your name"><button id="save">Save the file</button><span id="count"></span></footer>
<script>
const sections = [...document.querySelectorAll("section")], store = "judging/" + sections[0].id
const judge = document.getElementById("judge")
const choice = s => s.querySelector("input:checked")?.value ?? ""
const comment = s => s.querySelector(".comment")
function keep() {
  sections.forEach(s => s.classList.toggle("done", choice(s) != ""))
  document.getElementById("count").textContent = sections.filter(s => choice(s)).length + " of " + sections.length + " judged"
  try {
    localStorage.setItem(store, JSON.stringify([judge.value, sections.map(s => [choice(s), comment(s).value])]))
  } catch { /* a browser may forbid it: then nothing outlives the page */ }
}
try {
  const [name, kept] = JSON.parse(localStorage.getItem(store)) ?? ["", []]
  judge.value = name
  kept.forEach(([word, text], i) => {
    comment(sections[i]).value = text
    if (word) sections[i].querySelector(`input[value=${word}]`).checked = true
  })
} catch { /* nothing kept */ }
keep()
document.addEventListener("input", keep)
document.getElementById("save").onclick = () => {
  // An apostrophe keeps a spreadsheet from running a text as a formula.
  const plain = text => /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) ? "'" + text : text
  const cell = text => '"' + plain(text).replaceAll('"', '""') + '"'
  const name = judge.value.trim()
  if (!name) { judge.focus(); return }
  const rows = sections.map(s => [s.id, name, choice(s), comment(s).value].map(cell).join(","))
  const text = ["\ufeffrow,judge,preference,comment", ...rows, ""].join("\n")
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }))
  link.download = document.title + "-" + name.replace(/[^\p{L}\p{N}]+/gu, "_") + ".csv"
  link.click()
}
</script>
</html>
"""
