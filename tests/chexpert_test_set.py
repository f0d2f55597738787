"""What others computed on the CheXpert test set: areas of six entries, and the rates of three radiologists."""

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

AREAS = {  # per finding, and the mean of the rounded five
    "desmond": (0.8744, 0.9330, 0.9160, 0.9209, 0.9468, 0.9182),
    "drnet": (0.8843, 0.9370, 0.9161, 0.9301, 0.9602, 0.9255),
    "ihil": (0.8843, 0.9425, 0.9161, 0.9301, 0.9602, 0.9266),
    "ngango2": (0.8902, 0.9367, 0.9000, 0.9258, 0.9644, 0.9234),
    "sensexdr": (0.8843, 0.9426, 0.9161, 0.9301, 0.9602, 0.9267),
    "uestc": (0.8843, 0.9309, 0.9161, 0.9287, 0.9602, 0.9240),
}

READERS = {  # sensitivity, specificity
    "bc4": ((0.80, 0.79), (0.48, 0.95), (0.66, 0.89), (0.63, 0.92), (0.82, 0.95)),
    "bc6": ((0.71, 0.82), (0.85, 0.77), (0.48, 0.91), (0.80, 0.81), (0.83, 0.83)),
    "bc8": ((0.92, 0.69), (0.70, 0.89), (0.45, 0.97), (0.58, 0.93), (0.89, 0.86)),
}
