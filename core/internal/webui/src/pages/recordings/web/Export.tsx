import { Alert, Button, Group, Modal, Progress, SegmentedControl, Stack, Switch, Text } from "@mantine/core";
import { IconDownload } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, ask, type Schemas } from "~/api/client";
import { bytes } from "~/ui/Bytes";
import { ErrorBox } from "~/ui/ErrorBox";
import { Time } from "~/ui/Time";
import { clock } from "../words";
import { videoUrl } from "./source";

type Video = Schemas["RecordingExport"];

// Export has core make a video, and shows those that are there.
export function Export({ id, t, duration, close }: { id: string; t: number; duration: number; close: () => void }) {
  const client = useQueryClient();
  const [format, setFormat] = useState<Video["format"]>("webm");
  const [events, setEvents] = useState(true);
  const [part, setPart] = useState("all");
  const key = ["recording", "videos", id];
  const list = useQuery({ queryKey: key, queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/exports", { params: { path: { id } }, signal })) });
  const make = useMutation({
    mutationFn: () => ask(api.POST("/recordings/{id}/exports", { params: { path: { id } }, body: { format, events, ...(part === "from" ? { from: t } : part === "until" ? { to: t } : {}) } })),
    onSettled: () => client.invalidateQueries({ queryKey: key }),
  });
  const drop = useMutation({
    mutationFn: (video: string) => ask(api.DELETE("/recordings/{id}/exports/{export}", { params: { path: { id, export: video } } })),
    onSettled: () => client.invalidateQueries({ queryKey: key }),
  });
  const videos = list.data?.items ?? [];
  const middle = t > 1 && t < duration - 1;
  return (
    <Modal opened onClose={close} title="Save as a video">
      <Stack gap="md">
        <SegmentedControl aria-label="Format" value={format} onChange={(v) => setFormat(v as Video["format"])} data={[{ value: "webm", label: "WebM (VP9)" }, { value: "mp4", label: "MP4 (H.264)" }]} />
        {middle && <SegmentedControl aria-label="Part" value={part} onChange={setPart} data={[{ value: "all", label: "Whole session" }, { value: "from", label: `From ${clock(t)}` }, { value: "until", label: `Until ${clock(t)}` }]} />}
        <Switch label="With the time and the last event under the picture" checked={events} onChange={(e) => setEvents(e.currentTarget.checked)} />
        <Group justify="flex-end"><Button onClick={() => make.mutate()} loading={make.isPending}>Make the video</Button></Group>
        {make.error && <ErrorBox error={make.error} />}
        {list.error && <ErrorBox error={list.error} again={() => void list.refetch()} />}
        {videos.map((v) => <One key={v.id} id={id} video={v} drop={() => drop.mutate(v.id)} again={() => void list.refetch()} />)}
        {drop.error && <ErrorBox error={drop.error} />}
        <Text size="xs" c="dimmed">Videos are removed an hour after they were made. They are not signed: the recording itself stays the evidence.</Text>
      </Stack>
    </Modal>
  );
}

// One asks core how far a video is; core answers when something changed.
function One({ id, video, drop, again }: { id: string; video: Video; drop: () => void; again: () => void }) {
  const q = useQuery({
    queryKey: ["video", id, video.id], initialData: video, gcTime: 0,
    queryFn: ({ signal }) => ask(api.GET("/recordings/{id}/exports/{export}", { params: { path: { id, export: video.id }, query: { wait: 20 } }, signal })),
    refetchInterval: ({ state }) => (state.data?.state === "waiting" || state.data?.state === "running" ? 200 : false),
  });
  // A restart of core forgets videos: the list says what is left.
  if (q.error) return <ErrorBox error={q.error} again={again} />;
  const v = q.data;
  const what = `${v.format.toUpperCase().replace("WEBM", "WebM")}, ${clock(v.from)}–${clock(v.to)}`;
  if (v.state === "failed") return <Alert variant="light" color="red" title={`${what}: not made`} withCloseButton closeButtonLabel="Remove" onClose={drop}>{v.error}</Alert>;
  return (
    <div>
      <Group justify="space-between" gap="sm">
        <Text size="sm">{what}{v.state === "done" && v.size_bytes ? `, ${bytes(v.size_bytes)}` : ""}{v.state === "waiting" ? ", waits for another video" : ""}</Text>
        <Group gap={6}>
          {v.state === "done" && <Button component="a" href={videoUrl(id, v.id)} size="compact-sm" leftSection={<IconDownload size={15} />}>Download</Button>}
          <Button size="compact-sm" variant="subtle" color="gray" onClick={drop}>{v.state === "done" ? "Remove" : "Cancel"}</Button>
        </Group>
      </Group>
      {v.state !== "done" && <Progress value={100 * v.progress} animated={v.state === "running"} mt={6} aria-label="Progress" />}
      {v.expires_at && <Text size="xs" c="dimmed">until <Time at={v.expires_at} /></Text>}
    </div>
  );
}
