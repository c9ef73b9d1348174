// bytes writes a size with decimal units, three digits at most.
export function bytes(n: number): string {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${i === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(n >= 9.995 ? 1 : 2)} ${units[i]}`;
}

export function Bytes({ n }: { n: number }) {
  return <span className="nums" title={`${n.toLocaleString()} bytes`}>{bytes(n)}</span>;
}
