"use strict";
for (const section of document.querySelectorAll("section.spec-part")) {
  const [status, family, text] = section.querySelectorAll(".filter select, .filter input");
  const rows = section.querySelectorAll("tbody.rows tr");
  const shown = section.querySelector("output");
  const apply = () => {
    const wanted = text.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = Boolean(
        (status.value && row.dataset.status !== status.value) ||
        (family.value && row.dataset.family !== family.value) ||
        !row.textContent.toLowerCase().includes(wanted));
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
  };
  for (const control of [status, family, text])
    for (const event of ["input", "change"])
    control.addEventListener(event, apply);
  apply();
}
