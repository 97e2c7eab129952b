async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // A browser may forbid the clipboard to a page from a file: then the command is at least selected.
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) { button.textContent = "Selected"; return; }
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
document.addEventListener("click", event => { if (event.target.matches("button.copy")) copy(event.target); });
