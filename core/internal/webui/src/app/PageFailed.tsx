import type { ErrorComponentProps } from "@tanstack/react-router";
import { asError } from "~/api/client";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";

// PageFailed stands in for a page that broke.
export function PageFailed({ error, reset }: ErrorComponentProps) {
  return (
    <Page title="This page failed">
      <ErrorBox error={asError(error)} again={reset} />
    </Page>
  );
}
