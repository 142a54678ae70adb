"""What a real GPU makes of a full-size SDXL. All but the tests themselves runs without the service, see `report`."""
