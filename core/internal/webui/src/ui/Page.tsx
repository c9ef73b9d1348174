import { Group, Text, Title } from "@mantine/core";
import { type ReactNode, useEffect } from "react";
import classes from "./Page.module.css";

interface Props {
  title: string;
  // hint is one short line under the title.
  hint?: ReactNode;
  // actions stand right of the title: the page's main buttons.
  actions?: ReactNode;
  // back leads to the list this belongs to.
  back?: ReactNode;
  // fill pages give their content the rest of the window's height (tables).
  fill?: boolean;
  children: ReactNode;
}

export function Page({ title, hint, actions, back, fill, children }: Props) {
  useEffect(() => {
    document.title = `${title} · Caponier`;
  }, [title]);
  return (
    <div className={classes.page} data-fill={fill || undefined}>
      {back && <div className={classes.back}>{back}</div>}
      <div className={classes.head}>
        <div className={classes.title}>
          <Title order={1} lineClamp={2}>{title}</Title>
          {hint && <Text c="dimmed" size="sm" component="div">{hint}</Text>}
        </div>
        {actions && <Group gap="xs" className={classes.actions}>{actions}</Group>}
      </div>
      {children}
    </div>
  );
}
