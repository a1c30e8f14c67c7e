"""What several tests share. Import as ``tests.helpers.NAME``."""
