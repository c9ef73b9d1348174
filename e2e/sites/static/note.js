// The cursor is in the field as soon as the page is there.
document.getElementById("note").focus();
