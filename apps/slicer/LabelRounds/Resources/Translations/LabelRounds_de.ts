<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="de">
  <context>
    <name>LabelRounds</name>
    <message>
      <source> Best {measure} {score:.2f}.</source>
      <translation> Bisher bestes {measure}: {score:.2f}.</translation>
    </message>
    <message>
      <source> No model knows {names}, which will not be learnt.</source>
      <translation> {names} kennt kein Modell; das wird nicht gelernt.</translation>
    </message>
    <message>
      <source> Segments that overlap are kept so; a training takes the later one of the list there.</source>
      <translation> Segmente, die sich überlappen, bleiben so erhalten; ein Training nimmt dort das spätere der Liste.</translation>
    </message>
    <message>
      <source>95 % interval, high end</source>
      <translation>95-%-Intervall, oberes Ende</translation>
    </message>
    <message>
      <source>95 % interval, low end</source>
      <translation>95-%-Intervall, unteres Ende</translation>
    </message>
    <message>
      <source>A map over the image of what the network looked at for the class chosen above (Grad-CAM); it need not be the disease</source>
      <translation>Eine Karte über dem Bild: worauf das Netz bei der oben gewählten Klasse geachtet hat (Grad-CAM); das muss nicht die Krankheit sein</translation>
    </message>
    <message>
      <source>About {time} left.</source>
      <translation>Noch etwa {time}.</translation>
    </message>
    <message>
      <source>Approve</source>
      <translation>Freigeben</translation>
    </message>
    <message>
      <source>Approved by {name}</source>
      <translation>Freigegeben von {name}</translation>
    </message>
    <message>
      <source>Ask again before images are sent to a server</source>
      <translation>Vor dem Senden von Bildern an einen Server erneut fragen</translation>
    </message>
    <message>
      <source>Ask the server for its models</source>
      <translation>Den Server nach seinen Modellen fragen</translation>
    </message>
    <message>
      <source>By label</source>
      <translation>Je Label</translation>
    </message>
    <message>
      <source>Cancel</source>
      <translation>Abbrechen</translation>
    </message>
    <message>
      <source>Cancel what the server is doing for you</source>
      <translation>Abbrechen, was der Server gerade für Sie tut</translation>
    </message>
    <message>
      <source>Cancelled. Nothing was changed in Slicer.</source>
      <translation>Abgebrochen. In Slicer wurde nichts geändert.</translation>
    </message>
    <message>
      <source>Case</source>
      <translation>Fall</translation>
    </message>
    <message>
      <source>Cases with a submitted label</source>
      <translation>Fälle mit eingereichtem Label</translation>
    </message>
    <message>
      <source>Changing the version</source>
      <translation>Version wechseln</translation>
    </message>
    <message>
      <source>Class</source>
      <translation>Klasse</translation>
    </message>
    <message>
      <source>Classes</source>
      <translation>Klassen</translation>
    </message>
    <message>
      <source>Computing a map</source>
      <translation>Karte berechnen</translation>
    </message>
    <message>
      <source>Connect</source>
      <translation>Verbinden</translation>
    </message>
    <message>
      <source>Connected to {name}.</source>
      <translation>Mit {name} verbunden.</translation>
    </message>
    <message>
      <source>Connecting</source>
      <translation>Verbinden</translation>
    </message>
    <message>
      <source>Defer a day</source>
      <translation>Einen Tag zurückstellen</translation>
    </message>
    <message>
      <source>Epoch {epoch} of {epochs}.</source>
      <translation>Epoche {epoch} von {epochs}.</translation>
    </message>
    <message>
      <source>Fetching the next case</source>
      <translation>Nächsten Fall holen</translation>
    </message>
    <message>
      <source>For research; it is not a medical device.</source>
      <translation>Für die Forschung; kein Medizinprodukt.</translation>
    </message>
    <message>
      <source>Hand this case out no more</source>
      <translation>Diesen Fall nicht mehr ausgeben</translation>
    </message>
    <message>
      <source>Hand this case out to nobody for a day</source>
      <translation>Diesen Fall einen Tag lang niemandem geben</translation>
    </message>
    <message>
      <source>Have everybody's images segmented by the version chosen above; none is removed</source>
      <translation>Die Bilder aller mit der oben gewählten Version segmentieren; keine wird gelöscht</translation>
    </message>
    <message>
      <source>Hide the map</source>
      <translation>Karte ausblenden</translation>
    </message>
    <message>
      <source>How the next case is chosen</source>
      <translation>Wie der nächste Fall gewählt wird</translation>
    </message>
    <message>
      <source>Judged on</source>
      <translation>Beurteilt an</translation>
    </message>
    <message>
      <source>Key or password</source>
      <translation>Schlüssel oder Passwort</translation>
    </message>
    <message>
      <source>Label</source>
      <translation>Label</translation>
    </message>
    <message>
      <source>Labelled by</source>
      <translation>Gelabelt von</translation>
    </message>
    <message>
      <source>Labels</source>
      <translation>Labels</translation>
    </message>
    <message>
      <source>Labels and review</source>
      <translation>Labels und Durchsicht</translation>
    </message>
    <message>
      <source>Log in</source>
      <translation>Anmelden</translation>
    </message>
    <message>
      <source>Log in to {address}: {detail}.</source>
      <translation>Bitte bei {address} anmelden: {detail}.</translation>
    </message>
    <message>
      <source>Logging in</source>
      <translation>Anmelden</translation>
    </message>
    <message>
      <source>Look again: {reason}</source>
      <translation>Noch einmal ansehen: {reason}</translation>
    </message>
    <message>
      <source>Made</source>
      <translation>Entstanden</translation>
    </message>
    <message>
      <source>Merge: keep what was changed by hand, put the rest</source>
      <translation>Zusammenführen: von Hand Geändertes behalten, den Rest einsetzen</translation>
    </message>
    <message>
      <source>New prediction</source>
      <translation>Neue Vorhersage</translation>
    </message>
    <message>
      <source>Next case</source>
      <translation>Nächster Fall</translation>
    </message>
    <message>
      <source>Next cases</source>
      <translation>Nächste Fälle</translation>
    </message>
    <message>
      <source>No image is shown in the slice views: load one, or click Next case.</source>
      <translation>Die Schichtansichten zeigen kein Bild: Laden Sie eines, oder klicken Sie auf Nächster Fall.</translation>
    </message>
    <message>
      <source>No server answers at {address} ({reason}). Check the address, or ask whoever runs the server.</source>
      <translation>Unter {address} antwortet kein Server ({reason}). Prüfen Sie die Adresse, oder fragen Sie, wer den Server betreibt.</translation>
    </message>
    <message>
      <source>Not connected yet.</source>
      <translation>Noch nicht verbunden.</translation>
    </message>
    <message>
      <source>Nothing is learnt from the label, and its case is handed out again until it is corrected</source>
      <translation>Von dem Label wird nicht gelernt, und sein Fall wird wieder ausgegeben, bis es korrigiert ist</translation>
    </message>
    <message>
      <source>Nothing was sent.</source>
      <translation>Es wurde nichts gesendet.</translation>
    </message>
    <message>
      <source>Now {stage}.</source>
      <translation>Jetzt: {stage}.</translation>
    </message>
    <message>
      <source>Opacity of maps over an image, %</source>
      <translation>Deckkraft von Karten über einem Bild, %</translation>
    </message>
    <message>
      <source>Open a submitted case with its label</source>
      <translation>Einen eingereichten Fall mit seinem Label öffnen</translation>
    </message>
    <message>
      <source>Open again</source>
      <translation>Wieder öffnen</translation>
    </message>
    <message>
      <source>Open the case that is most worth labelling</source>
      <translation>Den Fall öffnen, dessen Label am meisten bringt</translation>
    </message>
    <message>
      <source>Open the case that is most worth labelling (Ctrl+Shift+N)</source>
      <translation>Den Fall öffnen, dessen Label am meisten bringt (Strg+Umschalt+N)</translation>
    </message>
    <message>
      <source>Opening</source>
      <translation>Öffnen</translation>
    </message>
    <message>
      <source>Plot what the labels have brought</source>
      <translation>Zeichnen, was die Labels gebracht haben</translation>
    </message>
    <message>
      <source>Probability</source>
      <translation>Wahrscheinlichkeit</translation>
    </message>
    <message>
      <source>Put it into a new segmentation</source>
      <translation>In eine neue Segmentierung einsetzen</translation>
    </message>
    <message>
      <source>Putting aside</source>
      <translation>Beiseitelegen</translation>
    </message>
    <message>
      <source>Replace what was changed by hand</source>
      <translation>Von Hand Geändertes ersetzen</translation>
    </message>
    <message>
      <source>Review</source>
      <translation>Durchsicht</translation>
    </message>
    <message>
      <source>Reviewing</source>
      <translation>Durchsicht senden</translation>
    </message>
    <message>
      <source>Round</source>
      <translation>Runde</translation>
    </message>
    <message>
      <source>Say what is to be corrected, then send it back.</source>
      <translation>Sagen Sie, was zu korrigieren ist, und geben Sie es dann zurück.</translation>
    </message>
    <message>
      <source>Score {score:.3g} by {strategy}, rank {rank}.</source>
      <translation>Wert {score:.3g} nach {strategy}, Rang {rank}.</translation>
    </message>
    <message>
      <source>Segment</source>
      <translation>Segmentieren</translation>
    </message>
    <message>
      <source>Segment each next case at once</source>
      <translation>Jeden nächsten Fall sofort segmentieren</translation>
    </message>
    <message>
      <source>Segment the image that the slice views show</source>
      <translation>Das Bild segmentieren, das die Schichtansichten zeigen</translation>
    </message>
    <message>
      <source>Segment the image that the slice views show (Ctrl+Shift+G)</source>
      <translation>Das Bild segmentieren, das die Schichtansichten zeigen (Strg+Umschalt+G)</translation>
    </message>
    <message>
      <source>Segment, correct, submit and retrain on a LabelRounds server, round after round.</source>
      <translation>Segmentieren, korrigieren, einreichen und neu trainieren auf einem LabelRounds-Server, Runde um Runde.</translation>
    </message>
    <message>
      <source>Segmenting</source>
      <translation>Segmentieren</translation>
    </message>
    <message>
      <source>Send</source>
      <translation>Senden</translation>
    </message>
    <message>
      <source>Send back</source>
      <translation>Zurückgeben</translation>
    </message>
    <message>
      <source>Send the image?</source>
      <translation>Das Bild senden?</translation>
    </message>
    <message>
      <source>Sent back by {name}: {reason}</source>
      <translation>Zurückgegeben von {name}: {reason}</translation>
    </message>
    <message>
      <source>Serve this version</source>
      <translation>Diese Version verwenden</translation>
    </message>
    <message>
      <source>Serve version {number} of {model} to everybody from now on?</source>
      <translation>Version {number} von {model} von jetzt an für alle verwenden?</translation>
    </message>
    <message>
      <source>Server address</source>
      <translation>Adresse des Servers</translation>
    </message>
    <message>
      <source>Several segments are named {names}; give each its own name, or merge them. Nothing was sent.</source>
      <translation>Mehrere Segmente heißen {names}; geben Sie jedem einen eigenen Namen, oder vereinen Sie sie. Nichts wurde gesendet.</translation>
    </message>
    <message>
      <source>Show over the image where the model is unsure</source>
      <translation>Über dem Bild zeigen, wo das Modell unsicher ist</translation>
    </message>
    <message>
      <source>Show uncertainty</source>
      <translation>Unsicherheit zeigen</translation>
    </message>
    <message>
      <source>Show what it was found by</source>
      <translation>Zeigen, woran sie erkannt wurde</translation>
    </message>
    <message>
      <source>Skip</source>
      <translation>Überspringen</translation>
    </message>
    <message>
      <source>Starting a training</source>
      <translation>Training starten</translation>
    </message>
    <message>
      <source>Stop the training with the best so far?</source>
      <translation>Das Training mit dem bisher besten Stand beenden?</translation>
    </message>
    <message>
      <source>Stop training</source>
      <translation>Training beenden</translation>
    </message>
    <message>
      <source>Stopping the training</source>
      <translation>Training beenden</translation>
    </message>
    <message>
      <source>Strip the name: call images by a random number there</source>
      <translation>Ohne Namen: Bilder heißen dort nach einer Zufallszahl</translation>
    </message>
    <message>
      <source>Submit</source>
      <translation>Einreichen</translation>
    </message>
    <message>
      <source>Submit class</source>
      <translation>Klasse einreichen</translation>
    </message>
    <message>
      <source>Submit the segmentation of the image that the slice views show</source>
      <translation>Die Segmentierung des Bildes einreichen, das die Schichtansichten zeigen</translation>
    </message>
    <message>
      <source>Submit the segmentation of the image that the slice views show (Ctrl+Shift+U)</source>
      <translation>Die Segmentierung des Bildes einreichen, das die Schichtansichten zeigen (Strg+Umschalt+U)</translation>
    </message>
    <message>
      <source>Submitting</source>
      <translation>Einreichen</translation>
    </message>
    <message>
      <source>Take the last prediction back (Ctrl+Shift+Backspace)</source>
      <translation>Die letzte Vorhersage zurücknehmen (Strg+Umschalt+Rücktaste)</translation>
    </message>
    <message>
      <source>Take the map over the image away</source>
      <translation>Die Karte über dem Bild entfernen</translation>
    </message>
    <message>
      <source>Take the prediction back, and what was drawn since?</source>
      <translation>Die Vorhersage zurücknehmen, und was seither gezeichnet wurde?</translation>
    </message>
    <message>
      <source>The brighter, the less sure the model is of a voxel.</source>
      <translation>Je heller, desto unsicherer ist sich das Modell eines Voxels.</translation>
    </message>
    <message>
      <source>The cases that come next, by the strategy chosen above</source>
      <translation>Die Fälle, die als nächste kommen, nach der oben gewählten Strategie</translation>
    </message>
    <message>
      <source>The image was closed in the meantime; its map is dropped.</source>
      <translation>Das Bild wurde inzwischen geschlossen; seine Karte wird verworfen.</translation>
    </message>
    <message>
      <source>The image was closed in the meantime; its prediction is dropped.</source>
      <translation>Das Bild wurde inzwischen geschlossen; seine Vorhersage wird verworfen.</translation>
    </message>
    <message>
      <source>The label is as it should be</source>
      <translation>Das Label ist, wie es sein soll</translation>
    </message>
    <message>
      <source>The label of {image} is approved.</source>
      <translation>Das Label von {image} ist freigegeben.</translation>
    </message>
    <message>
      <source>The label of {image} is replaced again and again while it is fetched. Try again in a moment.</source>
      <translation>Das Label von {image} wird immer wieder ersetzt, während es geholt wird. Versuchen Sie es gleich noch einmal.</translation>
    </message>
    <message>
      <source>The last prediction was taken back.</source>
      <translation>Die letzte Vorhersage wurde zurückgenommen.</translation>
    </message>
    <message>
      <source>The model that segments; it is remembered</source>
      <translation>Das Modell, das segmentiert; es wird gemerkt</translation>
    </message>
    <message>
      <source>The prediction was dropped; your segments are as they were.</source>
      <translation>Die Vorhersage wurde verworfen; Ihre Segmente sind, wie sie waren.</translation>
    </message>
    <message>
      <source>The score of each version against the labels that it has learnt from</source>
      <translation>Der Wert jeder Version gegen die Labels, von denen sie gelernt hat</translation>
    </message>
    <message>
      <source>The server at {address} was lost before it had answered ({reason}). Try again in a moment.</source>
      <translation>Die Verbindung zum Server {address} ging verloren, bevor er geantwortet hatte ({reason}). Versuchen Sie es gleich noch einmal.</translation>
    </message>
    <message>
      <source>The server can't do this now: {detail}.</source>
      <translation>Der Server kann das gerade nicht: {detail}.</translation>
    </message>
    <message>
      <source>The server failed at this (status {status}): {detail}.</source>
      <translation>Der Server ist daran gescheitert (Status {status}): {detail}.</translation>
    </message>
    <message>
      <source>The server has no trained model yet: submit labels, then train.</source>
      <translation>Der Server hat noch kein trainiertes Modell: Reichen Sie Labels ein, und trainieren Sie dann.</translation>
    </message>
    <message>
      <source>The server is version {theirs}, this module {ours}: update the older one if something goes wrong.</source>
      <translation>Der Server hat Version {theirs}, dieses Modul {ours}: Aktualisieren Sie das ältere, wenn etwas nicht geht.</translation>
    </message>
    <message>
      <source>The server refuses this: {detail}.</source>
      <translation>Der Server lehnt das ab: {detail}.</translation>
    </message>
    <message>
      <source>The server's address, as http://localhost:8000</source>
      <translation>Die Adresse des Servers, etwa http://localhost:8000</translation>
    </message>
    <message>
      <source>The training failed: {why}</source>
      <translation>Das Training ist gescheitert: {why}</translation>
    </message>
    <message>
      <source>The training has ended.</source>
      <translation>Das Training ist zu Ende.</translation>
    </message>
    <message>
      <source>The training is told to stop.</source>
      <translation>Dem Training wurde gesagt, dass es enden soll.</translation>
    </message>
    <message>
      <source>The versions of the model, the newest first</source>
      <translation>Die Versionen des Modells, die neueste zuerst</translation>
    </message>
    <message>
      <source>There is no case left to label.</source>
      <translation>Es ist kein Fall mehr zu labeln.</translation>
    </message>
    <message>
      <source>These segments were changed by hand: {names}. What shall become of the new prediction?</source>
      <translation>Diese Segmente wurden von Hand geändert: {names}. Was soll mit der neuen Vorhersage geschehen?</translation>
    </message>
    <message>
      <source>This failed in Slicer: {error}</source>
      <translation>Das ist in Slicer gescheitert: {error}</translation>
    </message>
    <message>
      <source>This is larger than the server takes: {detail}.</source>
      <translation>Das ist größer, als der Server annimmt: {detail}.</translation>
    </message>
    <message>
      <source>Toolbar icons in the colour of the text, for high contrast</source>
      <translation>Symbole in der Farbe der Schrift, für hohen Kontrast</translation>
    </message>
    <message>
      <source>Train</source>
      <translation>Trainieren</translation>
    </message>
    <message>
      <source>Train the model with all labels submitted so far</source>
      <translation>Das Modell mit allen bisher eingereichten Labels trainieren</translation>
    </message>
    <message>
      <source>Training</source>
      <translation>Training</translation>
    </message>
    <message>
      <source>Try again in a moment.</source>
      <translation>Versuchen Sie es gleich noch einmal.</translation>
    </message>
    <message>
      <source>Try again in {seconds} s.</source>
      <translation>Versuchen Sie es in {seconds} s noch einmal.</translation>
    </message>
    <message>
      <source>Undo</source>
      <translation>Rückgängig</translation>
    </message>
    <message>
      <source>User name</source>
      <translation>Benutzername</translation>
    </message>
    <message>
      <source>Version</source>
      <translation>Version</translation>
    </message>
    <message>
      <source>Version {number} of {model} is served from now on.</source>
      <translation>Von jetzt an wird Version {number} von {model} verwendet.</translation>
    </message>
    <message>
      <source>Waiting for another training.</source>
      <translation>Wartet auf ein anderes Training.</translation>
    </message>
    <message>
      <source>What answers at {address} is not a LabelRounds server.</source>
      <translation>Was unter {address} antwortet, ist kein LabelRounds-Server.</translation>
    </message>
    <message>
      <source>What is to be corrected</source>
      <translation>Was zu korrigieren ist</translation>
    </message>
    <message>
      <source>What the image is; another one than the model's is a correction</source>
      <translation>Was das Bild ist; eine andere Klasse als die des Modells ist eine Korrektur</translation>
    </message>
    <message>
      <source>What the labels have brought</source>
      <translation>Was die Labels gebracht haben</translation>
    </message>
    <message>
      <source>What the model has looked at, which need not be the disease.</source>
      <translation>Worauf das Modell geachtet hat; das muss nicht die Krankheit sein.</translation>
    </message>
    <message>
      <source>What the training has reached on the cases that it does not learn from</source>
      <translation>Was das Training an den Fällen erreicht hat, von denen es nicht lernt</translation>
    </message>
    <message>
      <source>When</source>
      <translation>Wann</translation>
    </message>
    <message>
      <source>Who has labelled what; labels to look at again stand first</source>
      <translation>Wer was gelabelt hat; zuerst Labels, die noch einmal anzusehen sind</translation>
    </message>
    <message>
      <source>Why it is put aside</source>
      <translation>Warum er beiseitegelegt wird</translation>
    </message>
    <message>
      <source>You are not allowed to do this: {detail}.</source>
      <translation>Das dürfen Sie nicht: {detail}.</translation>
    </message>
    <message>
      <source>Your login at the server has ended. Press Connect and log in, so that the case stays yours and your work can be submitted.</source>
      <translation>Ihre Anmeldung am Server ist abgelaufen. Drücken Sie Verbinden und melden Sie sich an, damit der Fall der Ihre bleibt und Ihre Arbeit eingereicht werden kann.</translation>
    </message>
    <message>
      <source>Yours for another {minutes} min; it could not be renewed, which is tried again.</source>
      <translation>Noch {minutes} min der Ihre; er konnte nicht verlängert werden, was wieder versucht wird.</translation>
    </message>
    <message>
      <source>Yours for another {minutes} min; it is renewed while the case is open.</source>
      <translation>Noch {minutes} min der Ihre; das verlängert sich, solange der Fall offen ist.</translation>
    </message>
    <message>
      <source>it gave no reason</source>
      <translation>er nannte keinen Grund</translation>
    </message>
    <message>
      <source>likeliest class</source>
      <translation>wahrscheinlichste Klasse</translation>
    </message>
    <message>
      <source>served</source>
      <translation>verwendet</translation>
    </message>
    <message>
      <source>the segments of {file} can't be read</source>
      <translation>die Segmente von {file} sind nicht lesbar</translation>
    </message>
    <message>
      <source>there are {count} segments; at most {most} can be submitted</source>
      <translation>es gibt {count} Segmente; höchstens {most} können eingereicht werden</translation>
    </message>
    <message>
      <source>uncertainty</source>
      <translation>Unsicherheit</translation>
    </message>
    <message>
      <source>{count:.1f} h</source>
      <translation>{count:.1f} h</translation>
    </message>
    <message>
      <source>{count} min</source>
      <translation>{count} min</translation>
    </message>
    <message>
      <source>{count} s</source>
      <translation>{count} s</translation>
    </message>
    <message>
      <source>{image} has no segmentation yet: segment it first.</source>
      <translation>{image} hat noch keine Segmentierung: Segmentieren Sie es zuerst.</translation>
    </message>
    <message>
      <source>{image} is open with its submitted label.</source>
      <translation>{image} ist mit seinem eingereichten Label offen.</translation>
    </message>
    <message>
      <source>{image} is put aside.</source>
      <translation>{image} ist beiseitegelegt.</translation>
    </message>
    <message>
      <source>{image} is sent back.</source>
      <translation>{image} ist zurückgegeben.</translation>
    </message>
    <message>
      <source>{image} is submitted.</source>
      <translation>{image} ist eingereicht.</translation>
    </message>
    <message>
      <source>{image} segmentation</source>
      <translation>{image} Segmentierung</translation>
    </message>
    <message>
      <source>{image} will be sent to {address}, and so will each image of your own that you segment or submit.</source>
      <translation>{image} wird an {address} gesendet, und ebenso jedes eigene Bild, das Sie segmentieren oder einreichen.</translation>
    </message>
    <message>
      <source>{image}: {reason}.</source>
      <translation>{image}: {reason}.</translation>
    </message>
    <message>
      <source>{model}, version {version}, has segmented {image}.</source>
      <translation>{model}, Version {version}, hat {image} segmentiert.</translation>
    </message>
    <message>
      <source>{name}, {percent:.0f} %</source>
      <translation>{name}, {percent:.0f} %</translation>
    </message>
    <message>
      <source>{queue} more wait.</source>
      <translation>{queue} weitere warten.</translation>
    </message>
    <message>
      <source>{what} ...</source>
      <translation>{what} ...</translation>
    </message>
  </context>
</TS>
