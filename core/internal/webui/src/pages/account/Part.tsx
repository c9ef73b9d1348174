import { Button, CopyButton, Text, Title } from "@mantine/core";
import { type ReactNode, useId } from "react";
import classes from "./account.module.css";

// Part is one section of the account page.
export function Part({ title, hint, action, children }: { title: string; hint?: ReactNode; action?: ReactNode; children?: ReactNode }) {
  const id = useId();
  return (
    <section className={classes.part} aria-labelledby={id}>
      <div className={classes.head}>
        <div>
          <Title order={2} id={id}>{title}</Title>
          {hint && <Text size="sm" c="dimmed" component="div">{hint}</Text>}
        </div>
        {action}
      </div>
      {children}
    </section>
  );
}

// Rows lists things one has, each with what can be done to it.
export function Rows<T>({ label, items, none, row, rowKey }: { label: string; items: readonly T[]; none: string; row: (item: T) => ReactNode; rowKey: (item: T) => string }) {
  if (items.length === 0) return <Text size="sm" c="dimmed">{none}</Text>;
  return <ul className={classes.list} aria-label={label}>{items.map((i) => <li key={rowKey(i)}>{row(i)}</li>)}</ul>;
}

export function What({ children, more }: { children: ReactNode; more?: ReactNode }) {
  return <div className={classes.what}>{children}{more && <small>{more}</small>}</div>;
}

// Codes shows recovery codes, this once.
export function Codes({ codes }: { codes: readonly string[] }) {
  return (
    <>
      <Text size="sm">Keep these recovery codes where you find them without your phone. Each works once, in place of the second factor. They are shown only now.</Text>
      <ul className={classes.codes} aria-label="Recovery codes">{codes.map((c) => <li key={c}>{c}</li>)}</ul>
      <CopyButton value={codes.join("\n")}>{({ copied, copy }) => <Button variant="default" onClick={copy}>{copied ? "Copied" : "Copy all"}</Button>}</CopyButton>
    </>
  );
}
