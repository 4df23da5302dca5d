"""What a run is on other machines than this one."""
