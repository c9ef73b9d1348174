// The password never leaves the page: only its salted hash does.
document.getElementById("hashed").addEventListener("submit", async (e) => {
  e.preventDefault();
  const form = e.target;
  const text = form.dataset.salt + document.getElementById("password").value;
  const sum = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  form.elements.response.value = [...new Uint8Array(sum)].map((b) => b.toString(16).padStart(2, "0")).join("");
  form.submit();
});
