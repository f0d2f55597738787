"""An archive in memory, to pull from."""

from ward import dicom

from wetread.clinic.peers import PeerError


class Books:
    """An archive that holds what it is told, and brings all but what it is told not to."""

    def __init__(self, ward, holds, keeps=(), down=False):
        self.ward, self.holds, self.keeps, self.down, self.brought = ward, holds, set(keeps), down, []

    def find(self, wanted):
        if self.down:
            raise PeerError("down")
        return [wanted.study_uid] if wanted.study_uid in self.holds else []

    def instances(self, study_uid):
        return {"s": {f"1.2.{seed + 1}.3": "c" for seed in self.holds[study_uid]}}

    def fetch(self, study_uid, missing):
        for uid in missing["s"]:
            seed = int(uid.split(".")[2]) - 1
            if seed not in self.keeps:
                self.ward.take(dicom(seed))
                self.brought.append(seed)
        return "kept some" if self.keeps else ""
