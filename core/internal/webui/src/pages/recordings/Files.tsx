import { ActionIcon, Skeleton, Text, Tooltip } from "@mantine/core";
import { IconArrowDown, IconArrowUp, IconDownload } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { api, ask, type Schemas } from "~/api/client";
import { useSession } from "~/app/session";
import { bytes } from "~/ui/Bytes";
import { ErrorBox } from "~/ui/ErrorBox";
import classes from "./recordings.module.css";

type File = Schemas["RecordingFile"];

const missing: Record<string, string> = { too_large: "too large to keep a copy", not_stored: "no copy was kept", expired: "the copy was removed" };

// Files are what was transferred; copies are fetched by a ticket that holds once.
export function Files({ id }: { id: string }) {
  const { can } = useSession();
  const q = useQuery({ queryKey: ["recording", "files", id], queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/files", { params: { path: { id } }, signal })) });
  const fetchOne = useMutation({
    mutationFn: (f: File) => ask(api.POST("/recordings/{id}/files/{file}/ticket", { params: { path: { id, file: f.id } } })),
    onSuccess: (ticket) => location.assign(`/api/v1${ticket.path}`),
  });
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  if (!q.data) return <Skeleton height={80} mt="sm" />;
  const files = q.data.items ?? [];
  if (files.length === 0) return <Text size="sm" c="dimmed" mt="sm">No files were transferred.</Text>;
  return (
    <div className={classes.panel}>
      {fetchOne.error && <ErrorBox error={fetchOne.error} />}
      <ul className={classes.files}>
        {files.map((f) => (
          <li key={f.id}>
            {f.direction === "upload" ? <IconArrowUp size={16} role="img" aria-label="to the target" /> : <IconArrowDown size={16} role="img" aria-label="from the target" />}
            <div>
              <div className={classes.path}>{f.path}</div>
              <Tooltip label={`SHA-256 ${f.sha256}`} multiline maw={320} disabled={!f.sha256}><span className={classes.second}>{bytes(f.size_bytes)}{missing[f.status] && `, ${missing[f.status]}`}</span></Tooltip>
            </div>
            {f.status === "stored" && can("recordings:view") && <ActionIcon variant="subtle" color="gray" aria-label={`Download ${f.path}`} loading={fetchOne.isPending && fetchOne.variables?.id === f.id} onClick={() => fetchOne.mutate(f)}><IconDownload size={17} /></ActionIcon>}
          </li>
        ))}
      </ul>
    </div>
  );
}
