"""A run as people read it: its record, tables, plots and one self-contained page."""

from adaneg_openood.report.collect import collect
from adaneg_openood.report.record import RunRecord, load_record, save_record
from adaneg_openood.report.write import write_report

__all__ = ["RunRecord", "collect", "load_record", "save_record", "write_report"]
