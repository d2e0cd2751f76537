"""The time tags of CCSDS messages (301.0-B, ASCII codes A and B): calendar days or days of the year."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from sda_ops.astro.leap_seconds import UNIX_EPOCH_ORDINAL, utc_ns, utc_ns_of_tai
from sda_ops.astro.time import NS_PER_S

_TAI_MINUS_GPS_S = 19  # IS-GPS-200, 20.3.3.5.2.4, with TAI - UTC = 19 s at GPS's epoch
_FIRST_YEAR, _LAST_YEAR = 1678, 2261  # the whole years that 64 bits of nanoseconds reach

_TIME_TAG = re.compile(r"(\d{4})-(?:(\d\d)-(\d\d)|(\d{3}))T(\d\d):(\d\d):(\d\d)(?:\.(\d*))?Z?", re.ASCII)


def utc_ns_of_tag(tag: str, time_system: str = "UTC") -> int:
    """UTC nanoseconds since the Unix epoch; further digits are dropped. ``time_system`` is UTC, TAI or GPS.

    Raises ``ValueError``, also for a time within a leap second and a date that does not exist.
    """
    match = _TIME_TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"expected a time such as 2016-09-06T08:27:08.66 or 2016-250T08:27:08.66, got {tag[:40]!r}")
    year, month, day, day_of_year, hour, minute, second = (int(part or 0) for part in match.groups()[:-1])
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        raise ValueError(f"expected a year from {_FIRST_YEAR} to {_LAST_YEAR}, got {year}")
    if match[4]:
        ordinal = date(year, 1, 1).toordinal() + day_of_year - 1
        if date.fromordinal(ordinal).year != year:
            raise ValueError(f"expected a day of the year {year}, got {day_of_year}")
    else:
        try:
            ordinal = date(year, month, day).toordinal()
        except ValueError:
            raise ValueError(f"expected a date that exists, got {tag[:10]}") from None
    fraction_ns = int((match[8] or "").ljust(9, "0")[:9])
    day_since_epoch = ordinal - UNIX_EPOCH_ORDINAL
    if time_system == "UTC":
        return utc_ns(day_since_epoch, hour=hour, minute=minute, second=second, ns=fraction_ns)
    if hour > 23 or minute > 59 or second > 59:  # noqa: PLR2004 - a clock's, without leap seconds
        raise ValueError(f"expected a time of day in {time_system}, got {hour:02}:{minute:02}:{second:02}")
    seconds = day_since_epoch * 86_400 + hour * 3_600 + minute * 60 + second
    offset_s = _TAI_MINUS_GPS_S if time_system == "GPS" else 0
    return utc_ns_of_tai((seconds + offset_s) * NS_PER_S + fraction_ns)


def tag_of_utc_ns(timestamp_ns: int) -> str:
    """The calendar form, with three digits of a second or as many as the time has: ``2016-09-06T08:27:08.660``.

    It is the inverse of `utc_ns_of_tag`. A time before 1678 or after 2261 raises ``ValueError``.
    """
    seconds, ns = divmod(timestamp_ns, NS_PER_S)
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"expected a year from {_FIRST_YEAR} to {_LAST_YEAR}, got {moment.year}")
    return f"{moment.isoformat()}.{f'{ns:09}'.rstrip('0'):0<3}"
