"""Inside the admin API: who asks, what they may, how bodies, pages and exports look; no routes."""
