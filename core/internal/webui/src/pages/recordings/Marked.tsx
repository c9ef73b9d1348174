// Marked shows a line with every occurrence of text marked.
export function Marked({ line, text }: { line: string; text: string }) {
  const parts: { s: string; hit: boolean }[] = [];
  const low = line.toLowerCase();
  const find = text.toLowerCase();
  let from = 0;
  for (let i = find ? low.indexOf(find) : -1; i >= 0; i = low.indexOf(find, from)) {
    parts.push({ s: line.slice(from, i), hit: false }, { s: line.slice(i, i + find.length), hit: true });
    from = i + find.length;
  }
  parts.push({ s: line.slice(from), hit: false });
  return <>{parts.map((p, i) => (p.hit ? <mark key={i}>{p.s}</mark> : p.s))}</>;
}
