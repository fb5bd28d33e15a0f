"""Rules that decide: retries, fallback, token counts, failure and loop tracking. Pure; the loop acts."""
