// Sends what was chosen at once.
const input = document.getElementById("file");
input.addEventListener("change", async () => {
  const body = new FormData();
  for (const f of input.files) body.append("file", f, f.webkitRelativePath || f.name);
  const r = await fetch("/upload", { method: "POST", body });
  document.getElementById("said").textContent = await r.text();
});
