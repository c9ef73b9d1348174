import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";

export default function SSHCA() {
  return (
    <Page title="Certificates">
      <Empty title="This page is being made">Until then, use the caponier command.</Empty>
    </Page>
  );
}
