// Mark is the product's sign.
export function Mark({ size = 28 }: { size?: number }) {
  return (
    <svg width={size} height={size} viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" fill="#0f766e" />
      <path d="M6 24V13l4-2.2V14h3V9.4l3-1.4 3 1.4V14h3v-3.2L26 13v11h-7v-3a3 3 0 0 0-6 0v3z" fill="#fff" />
    </svg>
  );
}
