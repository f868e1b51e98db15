"""The admin pages: one handler file a page; templates and assets are in dashboards/admin."""
