import { Mark } from "./Mark";

// Splash is what index.html shows before any script runs, kept until there is
// something better: the two must look alike.
export function Splash() {
  return <div className="splash" role="status" aria-label="Loading"><div className="brand"><Mark /><span aria-hidden="true">Caponier</span></div></div>;
}
