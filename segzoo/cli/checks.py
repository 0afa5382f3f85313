"""The commands that check what is there: `check-data`, `doctor`."""

from __future__ import annotations

import argparse

from segzoo.cli.command import Command, tell


def _check_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder; see docs/own-data.md")
    parser.add_argument("--data-dir", help="where the result is kept")


def _check_data(arguments: argparse.Namespace) -> int:
    from segzoo.data.folder import check_folder

    tell(str(check_folder(arguments.folder, arguments.data_dir)))
    return 0


CHECK_DATA = Command("Check a folder of images and masks.", _check_data_arguments, _check_data)


def _doctor(arguments: argparse.Namespace) -> int:
    from segzoo.doctor import examine

    del arguments
    findings = examine()
    for finding in findings:
        tell(f"{finding.state:<7} {finding.text}")
    return 1 if any(finding.state == "broken" for finding in findings) else 0


DOCTOR = Command("Check the installation, devices and folders.", lambda parser: None, _doctor)
