// A picture that never stands still: a bar runs across while the colours turn.
const canvas = document.getElementById("canvas");
const c = canvas.getContext("2d");
let n = 0;
const draw = () => {
  for (let x = 0; x < 10; x++)
    for (let y = 0; y < 8; y++) {
      c.fillStyle = `hsl(${(n * 3 + x * 20 + y * 31) % 360} 80% 50%)`;
      c.fillRect(x * 50, y * 50, 50, 50);
    }
  c.fillStyle = "#000";
  c.fillRect((n * 7) % 500, 0, 12, 400);
  n++;
  requestAnimationFrame(draw);
};
draw();
