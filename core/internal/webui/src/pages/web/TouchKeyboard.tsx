import { ActionIcon } from "@mantine/core";
import { IconKeyboardShow } from "@tabler/icons-react";
import { type RefObject, useRef } from "react";
import { backspace, enter, symbolOf } from "./keys";
import type { Screen } from "./screen";
import classes from "./web.module.css";

// TouchKeyboard brings the keyboard up on devices that have none of their own;
// it is shown where the pointer is a finger.
export function TouchKeyboard({ screen }: { screen: RefObject<Screen | undefined> }) {
  const box = useRef<HTMLTextAreaElement>(null);
  return (
    <div className={classes.touch}>
      <ActionIcon size={46} radius="xl" variant="default" aria-label="Show the keyboard" onClick={() => box.current?.focus()}><IconKeyboardShow size={24} /></ActionIcon>
      <textarea
        ref={box} className={classes.typed} aria-label="Type into the session" autoCapitalize="off" autoComplete="off" autoCorrect="off" spellCheck={false} tabIndex={-1}
        onInput={(e) => {
          const el = e.currentTarget;
          const { inputType, data } = e.nativeEvent as InputEvent;
          if (inputType === "deleteContentBackward") screen.current?.press([backspace]);
          else if (inputType === "insertLineBreak") screen.current?.press([enter]);
          else for (const c of data ?? "") screen.current?.press([[symbolOf(c), ""]]);
          // Something must be left to delete.
          el.value = "\u00a0";
          el.setSelectionRange(1, 1);
        }}
      />
    </div>
  );
}
