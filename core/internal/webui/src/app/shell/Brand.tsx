import { Link } from "@tanstack/react-router";
import { Mark } from "../Mark";
import classes from "./Shell.module.css";

export function Brand() {
  return (
    <Link to="/" className={classes.brand} aria-label="Caponier, start page">
      <Mark />
      <span>Caponier</span>
    </Link>
  );
}
