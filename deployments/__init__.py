"""Entry points, one small file for each kind of process. They read the settings and hand values on."""
